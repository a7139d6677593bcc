"""Downstream tasks as data.

In: the files of a published set, or the labels of a training set. Out: datasets with the splits of a task, or few-shot
subsets. Uses no other wing.
"""
