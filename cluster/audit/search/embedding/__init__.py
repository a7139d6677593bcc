"""Embeddings of pictures, and the pairs with nearly equal ones.

In: pixels, or tables of vectors. Out: unit vectors of 256 numbers, their sign codes, pairs with their cosines. Uses the
searches of `search` and the schemas of `base`.
"""
