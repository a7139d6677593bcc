"""The subcommands of `cluster`. Heavy modules are imported inside the functions."""
