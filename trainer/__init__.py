"""BiT models: pretraining, transfer and evaluation, on Ray Train or in one process.

What users import comes from here (`from trainer import new_model, hyperrule`), loaded when it is asked for.
In: datasets of `pipeline`, weights of other code bases. Out: run folders with checkpoints, metrics and predictions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
