"""Optimizer steps in plain PyTorch, on any number of ranks: the loop, one step, the optimizer, losses, collectives.

In: a network, batches and a learning rate for each step. Out: changed weights and the figures of each step. Knows of no
storage and no Ray. May use model.
"""
