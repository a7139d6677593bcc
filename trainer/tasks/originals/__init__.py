"""The files that data sets are published as, read as they are: one module for each kind of file.

In: a folder. Out: published splits with names, encoded pictures and class names, any row of which can be taken.
Executes nothing that a file holds.
"""
