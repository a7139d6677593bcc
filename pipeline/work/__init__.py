"""Where work runs, and how it survives the death of workers."""
