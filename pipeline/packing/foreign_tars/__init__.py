"""Third-party WebDataset tars as a dataset, without changing them: indexed once, then opened like our own.

In: the URL or pattern of tars. Out: sidecars and a manifest, beside the tars or in a folder of this machine. Uses the
rest of `packing`, and what that uses.
"""
