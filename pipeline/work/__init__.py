"""Where work runs, in this process, in others or on Ray, and how it survives the death of workers.

In: a function and its calls. Out: one result for each call. Uses `base` and the retries of `store`.
"""
