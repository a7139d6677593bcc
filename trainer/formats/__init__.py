"""Weights in the files of other code bases: read, written, and named.

In: files of big_transfer, timm, big_vision or transformers, or a network. Out: weights by our names, or such files with
a model card. Executes nothing that a file holds. May use model.
"""
