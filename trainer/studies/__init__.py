"""The paper's studies at any scale: its tables and figures measured again, with a verdict on each claim.

In: a scale (models, datasets, lengths, seeds). Out: one folder for all studies of a scale, with every run once, and a
page for each study. A study is a description (`paper/`): which runs, what is measured of them, what the paper says. One
engine plans, checks, runs and resumes all of them; it may use every wing below.
"""
