"""The subcommands of `trainer`; torch and Ray are imported inside them, so that `--help` answers at once."""
