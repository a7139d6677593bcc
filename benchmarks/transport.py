"""Reads 8 MiB ranges from a real S3 server here with boto3 and with obstore: rate, and CPU time of the client.

    python benchmarks/transport.py [--rounds N]

Both read the same 48 ranges with 1 and with 4 at a time, as `Prefetcher` does, and drop the bytes. Physical limit: the
server and the copies of the loopback interface, shared by both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from peers import peer_python

_RANGE_BYTES, _NUM_RANGES, _KEY, _BUCKET = 8 << 20, 48, "transport", "bench"


def main(rounds: int) -> None:
    """Start the server, and the clients in an environment of their own."""
    from cluster.stack.services import start_stack, stop_stack  # noqa: PLC0415 - not in the clients' environment
    from pipeline.store.s3 import S3Store  # noqa: PLC0415

    python = peer_python("transport", "boto3==1.43.117", "obstore==0.12.1")
    with tempfile.TemporaryDirectory() as folder:
        stack = start_stack(Path(folder), cpus_per_node=[], bucket=_BUCKET)
        try:
            os.environ.update(stack.environment)
            S3Store(_BUCKET, "").create(_KEY, os.urandom(1 << 20) * (_RANGE_BYTES * _NUM_RANGES >> 20))
            subprocess.run([python, __file__, "--client", "--rounds", str(rounds)], check=True)
        finally:
            stop_stack(stack)


def client(rounds: int) -> None:
    """Time both clients in turn."""
    import boto3  # noqa: PLC0415 - only in the clients' environment
    import obstore  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(s3={"addressing_style": "path"}, max_pool_connections=32)
    s3 = boto3.client("s3", config=config)
    store = obstore.store.S3Store(
        _BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )

    def with_boto3(start: int) -> int:
        asked = f"bytes={start}-{start + _RANGE_BYTES - 1}"
        return len(s3.get_object(Bucket=_BUCKET, Key=_KEY, Range=asked)["Body"].read())

    def with_obstore(start: int) -> int:
        return len(bytes(obstore.get_range(store, _KEY, start=start, length=_RANGE_BYTES)))

    print("| client | at a time | MB/s, median | client CPU s/GB, median |\n| --- | --- | --- | --- |")
    for threads in (1, 4):
        found: dict[str, list[tuple[float, float]]] = {"boto3": [], "obstore": []}
        for _ in range(rounds):
            for name, read in (("boto3", with_boto3), ("obstore", with_obstore)):
                found[name].append(_timed(read, threads))
        for name, runs in found.items():
            rate, cpu = (median(values) for values in zip(*runs, strict=True))
            print(f"| {name} | {threads} | {rate:,.0f} | {cpu:.2f} |")
        print(json.dumps({"threads": threads, "runs": found}))


def _timed(read: Callable[[int], int], threads: int) -> tuple[float, float]:
    """Return MB/s and CPU seconds of this process a GB."""
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(read, range(0, _RANGE_BYTES * _NUM_RANGES, _RANGE_BYTES)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return done / 1e6 / wall, cpu / (done / 1e9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    sys.exit((client if chosen.client else main)(chosen.rounds))
