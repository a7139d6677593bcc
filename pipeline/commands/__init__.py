"""The subcommands of `pipeline`: from options to calls of the other wings, and their results in words.

May use every wing, and imports all but `base` inside the functions, so that `--help` answers at once.
"""
