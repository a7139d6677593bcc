"""The network of the paper: architecture by name, layers, weights of a new one, and what it costs.

In: a name such as R50x1. Out: a torch module, or figures about it. Uses no other wing; what is fast on CPUs only is in
`cpu`.
"""
