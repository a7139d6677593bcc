"""Index files for other tools, beside the shards: derived from a manifest version, never part of the dataset.

In: a `Dataset`. Out: the files of timm, open_clip, wids, DALI, Energon and Hugging Face. Uses `dataset`, `store` and
`base`.
"""
