"""What stands between the order of samples and batches: reading, checking, decoding, in processes of their own."""
