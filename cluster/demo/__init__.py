"""The whole product from end to end on real pictures: `make demo`.

In: digits out of two wheels, or the user's class folders. Out: one HTML report. It starts a local stack, runs the
commands of `pipeline`, `trainer` and `cluster` as a user would, and reads what they wrote; uses `stack` and `audit`.
"""
