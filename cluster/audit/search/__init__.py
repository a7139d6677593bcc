"""From two sets to candidate pairs: an exact Hamming join of their hashes, and of embeddings if one is asked for.

In: `Sides` with their fingerprints. Out: the closest matches of each downstream picture, hubs, states of the upstream
shards. No picture is compared here; pixels are read for further codes and embeddings only. Uses `base`.
"""
