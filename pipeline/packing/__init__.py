"""From sources to a published version: plan, pack, commit, publish; also `append`, `retry-rejects` and indexing.

In: folders, tables and tars at any URL, and a `ShardConfig`. Out: shards whose bytes depend on nothing else, and a new
version of the dataset. Uses `dataset`, `image`, `store`, `work` and `base`.
"""
