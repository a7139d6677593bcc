"""What every wing of the audit stands on: the pinned sets, tasks with stored results, and the schemas of all tables.

In: URLs of datasets, a work folder and a pool. Out: opened sets, results that are computed once, quarantined tasks.
Uses no other wing of the audit.
"""
