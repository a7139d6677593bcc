"""Watching runs: what a run folder tells, as a state in a few lines, as a page, and for TensorBoard.

In: run folders, read from any machine that reaches the store. Out: lines of text, an offline HTML page, event files.
Writes nothing into a run folder. May use jobs, for the configuration and the pictures of a run, and all below.
"""
