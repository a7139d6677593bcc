"""Packs JPEG files into shards.

    python benchmarks/packing.py FOLDER      (class folders of JPEG files)

Physical limit: every byte is read, hashed and written once, every picture decoded once. The contenders:
- decode only: simplejpeg over the same files, the floor of any writer that validates pixels
- ours: decode validation, perceptual hash, digests, tar, sidecar, blocks
- webdataset: ShardWriter with the bytes as they are, no validation, no index
Outputs are compared first: webdataset must read the same (jpg, cls) from both.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import simplejpeg
import webdataset
from side_by_side import compare

from pipeline.pack import pack_shard
from pipeline.plan import ShardConfig, plan_shards
from pipeline.sources.files import read_file
from pipeline.sources.folder import read_folder


def main(folder: str) -> None:
    """Compares the three."""
    source = read_folder(folder)
    plan, rows = plan_shards(source.rows, source.classes, ShardConfig(shard_bytes=1 << 40))
    files = rows.select(["uri", "labels", "source"]).to_pylist()
    with tempfile.TemporaryDirectory() as scratch:
        ours_path, theirs_path = Path(scratch) / "ours.tar", Path(scratch) / "theirs.tar"

        def decode_only() -> int:
            for file in files:
                simplejpeg.decode_jpeg(read_file(file["uri"]), colorspace="RGB")
            return len(files)

        def ours() -> int:
            ours_path.write_bytes(pack_shard(rows, 0, plan.config, read_file).tar)
            return len(files)

        def theirs() -> int:
            with webdataset.TarWriter(str(theirs_path)) as writer:
                for number, file in enumerate(files):
                    about = json.dumps({"source": file["source"], "labels": file["labels"]}).encode()
                    writer.write(
                        {
                            "__key__": f"{number:06d}",
                            "jpg": read_file(file["uri"]),
                            "cls": file["labels"][0],
                            "json": about,
                        }
                    )
            return len(files)

        ours(), theirs()
        read = [
            [
                (hashlib.sha256(s["jpg"]).hexdigest(), s["cls"])
                for s in webdataset.WebDataset(str(path), shardshuffle=False)
            ]
            for path in (ours_path, theirs_path)
        ]
        assert read[0] == read[1], "the two writers did not store the same samples"
        compare(
            f"packing {len(files):,} JPEG",
            {"decode only": decode_only, "ours": ours, "webdataset": theirs},
            "images",
            5,
        )


if __name__ == "__main__":
    main(sys.argv[1])
