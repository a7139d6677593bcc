"""The format on storage (docs/format.md): tars, sidecars, manifest versions, and how a version is published.

In: a store, and the commit records of shards. Out: a `Dataset` of one pinned version: its shards, blocks and samples.
Uses `image` (fingerprints), `store` and `base`.
"""
