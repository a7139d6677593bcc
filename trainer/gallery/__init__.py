"""Wrong predictions as pages for people: every one with its picture, and a sheet on which they are judged.

In: predictions and the dataset that they are of. Out: a folder of pages and pictures that opens offline. May use
scores.
"""
