"""Embeddings of pictures, and the pairs with nearly equal ones.

In: pixels, or tables of vectors. Out: unit vectors of 256 numbers for the picture and its parts, pairs with their
cosines. Uses the schemas of `base`.
"""
