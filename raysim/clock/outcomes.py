"""Outcomes: what becomes of the work of a client that was selected for a round."""

COUNTED = "counted"
LATE, SURPLUS, UNFINISHED = "late", "surplus", "unfinished"
"""After the deadline; not among the first that were needed; still at work when the run ended."""
DROPPED, OFFLINE, BATTERY = "dropped", "offline", "battery"
"""Dropped out, went offline, ran out of battery before it was done."""
INFEASIBLE, UNREACHABLE = "infeasible", "unreachable"
"""Selected, but cannot train any submodel; selected, but could not be reached."""
ABSENT = (INFEASIBLE, UNREACHABLE)
DTYPE = "<U11"
ALL = (COUNTED, LATE, SURPLUS, UNFINISHED, DROPPED, OFFLINE, BATTERY, INFEASIBLE, UNREACHABLE)
