"""Bytes somewhere: a local folder or an S3 prefix behind one small protocol, and source files at any URL.

In: URLs, keys and bytes. Out: bytes, listings, and objects that exist whole or not at all. Also leases, retries, hedged
reads and the block cache. Knows nothing of what the bytes mean. Uses `base`.
"""
