"""The report of an audit: HTML pages that open offline, and every table as Parquet or CSV.

In: the tables and figures of an audit, its sets, and verdicts of people. Out: a folder at any URL, with the same bytes
for the same audit. Uses `result`, `verify` (for difference images) and `base`.
"""
