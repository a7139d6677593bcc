"""The loader workers of a rank: they read blocks ahead, decode, and write batches to shared memory.

In: windows of lanes, from the rank's order. Out: the rank's part of each batch. Uses `selection`, `mixture` and what
`streaming` uses.
"""
