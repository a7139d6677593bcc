"""Index files for other tools, beside the shards: derived from a manifest version, never part of the dataset."""
