"""Checkpoints on object storage: their record, their files, which are kept, and a model made of one.

In: tensors by name and the state of a stream. Out: a committed checkpoint, or those tensors filled again on any number
of ranks. May use step and model.
"""
