"""What is done to a finished dataset: verify, repair, collect garbage, count, and look at its batches.

In: a `Dataset` or its store. Out: faults, rebuilt shards, garbage, statistics, contact sheets. Uses every wing but
`commands` and `exports`.
"""
