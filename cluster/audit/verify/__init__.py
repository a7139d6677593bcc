"""From candidate pairs to evidence: are two pictures the same, once aligned, and which of several matches is the copy.

In: candidates as tables, or the bytes and pixels of two pictures. Out: correlation, class of evidence and alignment.
Uses `base`.
"""
