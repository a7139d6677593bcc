"""From datasets to batches: order, mixture, selection, streams that resume exactly, and how fast they are.

In: selections of datasets, an `OrderConfig`, a transform, rank and number of ranks. Out: batches of decoded images that
depend on no number of ranks or workers. Uses `dataset`, `image`, `store` and `base`; nothing of `packing`.
"""
