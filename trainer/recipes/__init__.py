"""The paper's recipes as plain data: the upstream schedule, the BiT-HyperRule, what a pretraining run reads.

In: sizes of a task. Out: schedules, resolutions, datasets to read. Uses no other wing.
"""
