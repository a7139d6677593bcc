"""Runs of the trainer as jobs that nobody has to look after: checked first, with their code, restarted by themselves.

In: a command of the trainer and the address of a cluster. Out: a job of `cluster.stack`, with the digest of its code in
the run folder. The job's entry point starts the driver again if it is killed, as long as the run gets on.
"""
