"""How good predictions are: their table, accuracy, intervals.

In: predictions as arrays or tables. Out: figures with intervals. Uses no other wing.
"""
