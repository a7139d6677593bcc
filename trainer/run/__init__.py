"""A training run as a service: where it is launched, what it keeps, what it reports.

In: a job or a `TrainingRun`. Out: attempts, metric rows, replaced samples and checkpoints in the run's folder. The door
to Ray Train is `launch`, the wiring of the loop `fit`. May use checkpoint and step.
"""
