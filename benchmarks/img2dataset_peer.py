"""Packs the files of a table with img2dataset, in its own environment; prints the seconds it took.

python img2dataset_peer.py TABLE OUT
"""

import json
import os
import sys
import time


def main(table: str, out: str) -> None:
    """Run it with the settings that do the least: no decoding, one process."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download  # noqa: PLC0415 - its import is not timed

    started = time.perf_counter()
    download(
        url_list=table,
        input_format="parquet",
        url_col="url",
        save_additional_columns=["label"],
        output_folder=out,
        output_format="webdataset",
        processes_count=1,
        thread_count=4,
        number_sample_per_shard=2400,
        disable_all_reencoding=True,
        compute_hash="sha256",
        enable_wandb=False,
    )
    print(json.dumps(time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
