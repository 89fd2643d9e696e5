"""Tables of means over seeds: their numbers, columns, and output on the terminal and as text."""
