"""The one door to storage: a local folder or an S3 prefix behind the same small protocol."""
