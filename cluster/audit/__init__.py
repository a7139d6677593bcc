"""Near-duplicates between an upstream and a downstream dataset, with a report."""
