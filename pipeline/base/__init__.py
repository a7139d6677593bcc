"""What every other wing stands on: errors, records, keyed randomness, the console, and pages with charts.

In: plain values. Out: errors with a remedy, JSON, random numbers, progress on stderr, HTML and SVG. Uses no other wing.
"""
