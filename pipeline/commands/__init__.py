"""The subcommands of `pipeline`. Heavy modules are imported inside the functions."""
