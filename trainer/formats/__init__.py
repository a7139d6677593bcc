"""Weights in the files of other code bases: read, written, and named."""
