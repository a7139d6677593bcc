"""Reads our exports with the tools they are for. Run by hand: it installs gigabytes.

    python tests/peers/read_exports.py FOLDER_OF_CLASS_FOLDERS [--only timm,wids] [--cache FOLDER]

Packs the pictures with the `pipeline` command of this environment, exports, and lets each peer read everything in a
virtual environment of its own, where this file runs again with `--read`. One line a peer shows whether it met each
sample of the manifest once, with its label.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

# Key, where the peer has it, and label.
Sample = tuple[str | None, int]


def read_timm(root: Path, _: Path) -> Iterator[Sample]:
    from timm.data.readers import create_reader  # noqa: PLC0415 - each peer lives in its own environment

    reader = create_reader("wds/", root=str(root), split="train")
    found = [(None, label) for _, label in reader]
    assert len(reader) == len(found), f"counted {len(reader)} samples, read {len(found)}"
    yield from found


def read_wids(root: Path, scratch: Path) -> Iterator[Sample]:
    os.environ["WIDS_CACHE"] = str(scratch)
    import wids  # noqa: PLC0415

    dataset = wids.ShardListDataset(str(root / "wids.json"), transformations=[])
    for index in range(len(dataset)):
        sample = dataset[index]
        yield sample["__key__"], int(sample[".cls"].read())


def read_open_clip(root: Path, _: Path) -> Iterator[Sample]:
    import webdataset  # noqa: PLC0415
    from open_clip_train.data import get_dataset_size, tarfile_to_samples_nothrow  # noqa: PLC0415

    shards = sorted(str(path) for path in root.glob("shards/*/*.tar"))
    pipeline = webdataset.DataPipeline(webdataset.SimpleShardList(shards), tarfile_to_samples_nothrow)
    found = [(sample["__key__"], int(sample["cls"])) for sample in pipeline]
    counted, _ = get_dataset_size("::".join(shards))
    assert counted == len(found), f"counted {counted} samples, read {len(found)}"
    yield from found


def read_dali(root: Path, scratch: Path) -> Iterator[Sample]:
    from nvidia.dali import fn, pipeline_def  # noqa: PLC0415
    from wds2idx import IndexCreator  # noqa: PLC0415

    tars = sorted(root.glob("shards/*/*.tar"))
    indexes = [root / "exports/dali" / tar.relative_to(root).with_suffix(".idx") for tar in tars]
    for tar, ours in zip(tars, indexes, strict=True):
        with IndexCreator(str(tar), str(scratch / "idx"), verbose=False) as creator:
            creator.create_index()
        assert ours.read_text() == (scratch / "idx").read_text(), f"{ours} is not what wds2idx writes"

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pictures():
        encoded, label = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(index) for index in indexes],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            name="reader",
        )
        return fn.decoders.image(encoded), label

    pipeline = pictures()
    pipeline.build()
    for _ in range(pipeline.epoch_size("reader")):
        _, label = pipeline.packing.pack_run()
        yield None, int(bytes(label.at(0)))


def read_energon(root: Path, scratch: Path) -> Iterator[Sample]:
    from megatron import energon  # noqa: PLC0415
    from megatron.energon.epathlib import EPath  # noqa: PLC0415
    from megatron.energon.flavors.webdataset.itar_reader import SqliteITarEntryReader  # noqa: PLC0415

    by_key = SqliteITarEntryReader(EPath(root), key_is_full_entryname=True)
    alone = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    loader = energon.get_loader(energon.get_val_dataset(root, split_part="train", batch_size=1, worker_config=alone))
    for batch in loader:
        (key,), (label,) = batch.__key__, batch.label
        key = key.rpartition("/")[2]
        assert by_key[f"{key}.cls"][0] == str(int(label)).encode(), f"{key} is another by index.sqlite"
        yield key, int(label)
    command = [Path(sys.executable).parent / "energon"]
    for arguments in (["info", root], ["lint", root]):
        subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)
    _compare_with_prepare(root, scratch / "prepared", command)


def _compare_with_prepare(root: Path, copy: Path, command: list[Path]) -> None:
    """Let Energon index a copy itself: its files must be ours, but for the random uuid."""
    import sqlite3  # noqa: PLC0415

    shutil.copytree(root, copy)
    for index in copy.rglob("*.tar.idx"):
        index.unlink()
    (copy / ".nv-meta/index.sqlite").unlink()
    subprocess.run([*command, "prepare", "--tar-index-only", copy], check=True, stdout=sys.stderr)
    theirs = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.tar.idx")}
    assert theirs, "energon prepare wrote no index"
    for path, body in theirs.items():
        assert (root / path).read_bytes() == body, f"{path} is not what energon prepare writes"
    dumps = []
    for folder in (root, copy):
        with contextlib.closing(sqlite3.connect(folder / ".nv-meta/index.sqlite")) as database:
            tables = [sorted(database.execute(f"SELECT * FROM {name}")) for name in ("samples", "sample_parts")]  # noqa: S608
            dumps.append([tables, sorted(database.execute("SELECT type, name, tbl_name FROM sqlite_master"))])
    assert dumps[0] == dumps[1], "index.sqlite is not what energon prepare writes"


def read_huggingface(root: Path, scratch: Path) -> Iterator[Sample]:
    from datasets import load_dataset  # noqa: PLC0415

    for sample in load_dataset(str(root), cache_dir=str(scratch))["train"]:
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])
        yield sample["__key__"], sample["cls"]


# Distribution whose version is printed, what is installed with it, how it reads. torch 2.13 where it is only needed.
PEERS: dict[str, tuple[str, list[str], Callable[[Path, Path], Iterator[Sample]]]] = {
    "timm": ("timm", ["timm==1.0.31", "torch==2.14.1", "torchvision==0.29.1", "webdataset"], read_timm),
    "wids": ("wids", ["wids==0.1.11", "torch==2.13.0", "pillow"], read_wids),
    "open-clip": (
        "open_clip_torch",
        ["open_clip_torch==3.3.0", "torch==2.14.1", "torchvision==0.29.1", "webdataset<=0.2.86", "pandas"],
        read_open_clip,
    ),
    "dali": ("nvidia-dali-cuda120", ["nvidia-dali-cuda120==2.4.0"], read_dali),
    "energon": ("megatron-energon", ["megatron-energon==7.4.1", "torch==2.13.0"], read_energon),
    "huggingface": ("datasets", ["datasets", "pillow"], read_huggingface),
}


def report(peer: str, root: Path) -> None:
    """Run in the peer's environment: print its version and the samples as one line of JSON."""
    name, _, read = PEERS[peer]
    with tempfile.TemporaryDirectory() as scratch:
        found = list(read(root, Path(scratch)))
    sys.stdout.write(f"\n{json.dumps({'version': metadata.version(name), 'samples': found})}\n")


def ask(peer: str, root: Path, expected: dict[str, int], cache: Path) -> str:
    """Return the line about a peer."""
    environment = cache / peer
    python = environment / "bin/python"
    if not (environment / "complete").exists():
        venv.create(environment, with_pip=True, clear=True)
        installed = subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[peer][1]], check=False)
        if installed.returncode:
            return f"{peer}: cannot be installed"
        (environment / "complete").touch()
    log = environment / "read.log"
    with log.open("w") as errors:
        done = subprocess.run(
            [python, __file__, str(root), "--read", peer], stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
    if done.returncode:
        return f"{peer}: {log.read_text().strip().splitlines()[-1]} ({log})"
    printed = json.loads(done.stdout.splitlines()[-1])
    keys, labels = zip(*printed["samples"], strict=True) if printed["samples"] else ((), ())
    # A peer without keys reads in the order of the manifest.
    found = dict(zip(expected if set(keys) == {None} else keys, labels, strict=len(labels) == len(expected)))
    agree = len(labels) == len(expected) and found == expected
    return f"{peer} {printed['version']}: {len(labels)} samples read, labels {'equal' if agree else 'DIFFER'}"


def main() -> None:
    """Pack, exports, asks; end with 1 where a peer fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(PEERS), help="Names of peers, with commas.")
    parser.add_argument("--cache", type=Path, help="Where the environments stay for the next time.")
    parser.add_argument("--read", choices=PEERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        report(given.read, given.folder)
        return
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415 - not in a peer's environment

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "set")
        command = Path(sys.executable).parent / "pipeline"
        # Small shards and blocks, so that a few hundred pictures make several.
        subprocess.run([command, "shard", given.folder, root, "--shard-mb", "0.3", "--block-mib", "0.05"], check=True)
        subprocess.run([command, "export", root], check=True)
        samples = open_dataset(str(root)).all_samples(["key", "labels"]).to_pylist()
        expected = {sample["key"]: (sample["labels"] or [-1])[0] for sample in samples}
        lines = []
        for peer in given.only.split(","):
            lines.append(ask(peer, root, expected, given.cache or Path(scratch, "environments")))
            sys.stdout.write(f"{lines[-1]}\n")
            sys.stdout.flush()
    sys.exit(0 if all(line.endswith("labels equal") for line in lines) else 1)


if __name__ == "__main__":
    main()
