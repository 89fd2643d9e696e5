"""What becomes of the work of a client that was asked to take part in a round."""

COUNTED = "counted"
LATE, SURPLUS, UNFINISHED = "late", "surplus", "unfinished"
"""Too late for the deadline; not among the first that were needed; still at work when the run ended."""
DROPPED, OFFLINE, BATTERY = "dropped", "offline", "battery"
"""Dropped out, went offline, ran out of battery in the middle of its work."""
INFEASIBLE, UNREACHABLE = "infeasible", "unreachable"
"""Asked, but cannot train any submodel; asked, but did not answer."""
ABSENT = (INFEASIBLE, UNREACHABLE)
OUTCOME_DTYPE = "<U11"
OUTCOMES = (COUNTED, LATE, SURPLUS, UNFINISHED, DROPPED, OFFLINE, BATTERY, INFEASIBLE, UNREACHABLE)
