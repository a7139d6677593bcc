"""Bytes to pixels and back: decoding, fingerprints, what is stored of an image, and augmented views of it.

In: encoded images. Out: pixels, codes, JPEG bytes, or the reason why an image cannot be used. All of it is a function
of the bytes, the settings and a key. Uses `base`.
"""
