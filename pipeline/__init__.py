"""Images and labels into WebDataset tars on object storage, and those tars into batches.

What users import comes from here (`from pipeline import Stream, open_any`), loaded when it is asked for.
In: folders, tables and tars of images. Out: published datasets, and batches of them. Uses neither torch nor, but for
one door (`pipeline.work.on_ray`), Ray.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
