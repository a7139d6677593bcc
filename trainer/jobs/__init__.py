"""What one command runs on every rank: pretrain, fine-tune, evaluate, exchange weights.

In: a configuration and the rank's place. Out: a run folder. Only wiring: what is decided and computed stands in the
wings below, all of which it may use. `table` lists the jobs that can be launched.
"""
