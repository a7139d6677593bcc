"""Downstream tasks as data.

In: the labels of a training set. Out: few-shot subsets. Uses no other wing.
"""
