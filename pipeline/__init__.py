"""Images and labels into WebDataset tars on object storage, and those tars into batches."""
