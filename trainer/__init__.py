"""BiT models: pretraining, transfer and evaluation, on Ray Train or in one process."""
