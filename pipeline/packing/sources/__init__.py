"""What can be packed: class folders, label tables, and WebDataset tars.

In: a URL. Out: record batches with a row for each image: its name, where it lies, its labels; no image is read. Uses
`dataset` (tars and datasets as sources), `store` and `base`.
"""
