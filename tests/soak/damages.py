"""The ways to damage a dataset, each with what a stream of it must report."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.dataset.tar_format import END, member
from pipeline.image.policy import ImagePolicy
from tests.conftest import class_folders, jpeg, pack, picture

Key = tuple[int, int]  # shard, row
Expected = dict[Key, str]  # what must be reported, and why
NUM_SAMPLES = 200
SHARD = 3  # the shard that is damaged
ROW = 7  # the first row of it that is


@dataclass(frozen=True)
class Damage:
    """One way to damage a dataset.

    Attributes:
        name: For people.
        do: Damages a dataset in a folder; returns what must be reported.
        is_undecodable: Whether the dataset is the one that holds a picture which does not decode.
    """

    name: str
    do: Callable[[Dataset], Expected]
    is_undecodable: bool = False


def make(folder: Path) -> tuple[Path, Path]:
    """Pack the pictures; return the sound dataset, and one of which a picture does not decode."""
    source = class_folders(folder / "pictures", classes=4, each=NUM_SAMPLES // 4)
    config: dict[str, Any] = {"max_samples_per_shard": 25, "block_bytes": 40_000, "image": ImagePolicy(check="header")}
    pack(source, str(folder / "sound"), **config)
    broken = source / "class1" / "011.jpg"
    data = broken.read_bytes()
    scan = data.index(b"\xff\xda") + 14
    broken.write_bytes(data[: scan + 8] + b"\xff\xd9")  # header and end mark are there, the picture is not
    pack(source, str(folder / "undecodable"), **config)
    return folder / "sound", folder / "undecodable"


def tar_of(dataset: Dataset, shard: int = SHARD) -> Path:
    """Return the file of a shard in a local dataset."""
    return Path(dataset.shard_url(shard))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Put changed bytes in a file's place."""
    body = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(change(body))


def flipped(body: bytes, position: int) -> bytes:
    """Return the bytes with one bit flipped in that at `position`."""
    return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]


def _bounds(dataset: Dataset, row: int = ROW) -> tuple[int, int]:
    """Return the first byte of a sample's picture in its tar, and the byte after it."""
    sample = dataset.samples(SHARD).slice(row, 1).to_pylist()[0]
    return sample["image_offset"], sample["image_offset"] + sample["image_bytes"]


def _from(row: int, reason: str) -> Expected:
    return {(SHARD, number): reason for number in range(row, 25)}


def _truncated_at_a_border(dataset: Dataset) -> Expected:
    stop = _bounds(dataset)[0] - 512  # the header of the picture's member is the sample's first block
    rewrite(tar_of(dataset), lambda body: body[:stop])
    return _from(ROW, "truncated")


def _truncated_inside(dataset: Dataset) -> Expected:
    start, stop = _bounds(dataset)
    rewrite(tar_of(dataset), lambda body: body[: (start + stop) // 2])
    return _from(ROW, "truncated")


def _zero_filled(dataset: Dataset) -> Expected:
    start, stop = _bounds(dataset)
    middle = (start + stop) // 2
    rewrite(tar_of(dataset), lambda body: body[:middle] + bytes(len(body) - middle))
    return _from(ROW, "checksum")


def _flipped_in_a_picture(dataset: Dataset) -> Expected:
    start, stop = _bounds(dataset)
    rewrite(tar_of(dataset), lambda body: flipped(body, (start + stop) // 2))
    return {(SHARD, ROW): "checksum"}


def _flipped_in_a_header(dataset: Dataset) -> Expected:
    """The sidecar knows where the pictures are: all are saved."""
    size_field = _bounds(dataset)[0] - 512 + 130
    rewrite(tar_of(dataset), lambda body: flipped(body, size_field))
    return {}


def _missing(dataset: Dataset) -> Expected:
    tar_of(dataset).unlink()
    return _from(0, "missing")


def _replaced(dataset: Dataset) -> Expected:
    """Another tar takes the shard's place: sound, of the same size, its members as long as the old ones."""
    parts = []
    for number, sample in enumerate(dataset.samples(SHARD).to_pylist()):
        data = jpeg(picture(5000 + number), quality=30)
        about = dataset.read_span(SHARD, sample["json_offset"], sample["json_bytes"])
        parts.append(member(f"{sample['key']}.jpg", data.ljust(sample["image_bytes"], b"\0")))
        parts.append(member(f"{sample['key']}.json", about))
    other = b"".join(parts)

    def put(body: bytes) -> bytes:
        assert len(body) - len(other) >= len(END)
        return other.ljust(len(body), b"\0")

    rewrite(tar_of(dataset), put)
    return _from(0, "checksum")


def _without_sidecar(dataset: Dataset) -> Expected:
    """Without digests of its own a damaged block looks like a sound one: all of it is replaced."""
    _flipped_in_a_picture(dataset)
    [block] = [
        block
        for block in dataset.blocks.to_pylist()
        if block["shard"] == SHARD and block["first_row"] <= ROW < block["first_row"] + block["num_samples"]
    ]
    Path(dataset.store.url, dataset.shards[SHARD]["sidecar"]).unlink()
    return {(SHARD, block["first_row"] + number): "checksum" for number in range(block["num_samples"])}


def _no_sidecar(dataset: Dataset) -> Expected:
    """A sound block knows by itself what it holds."""
    Path(dataset.store.url, dataset.shards[SHARD]["sidecar"]).unlink()
    return {}


def _undecodable(dataset: Dataset) -> Expected:
    """Nothing is changed here: one picture was packed that does not decode."""
    sizes = dataset.all_samples(["image_bytes"])
    smallest = min(sizes.to_pylist(), key=lambda sample: int(sample["image_bytes"]))
    return {(smallest["shard"], smallest["row"]): "truncated"}


DAMAGES = (
    Damage("nothing", lambda dataset: {}),
    Damage("shard truncated at a sample's border", _truncated_at_a_border),
    Damage("shard truncated inside a picture", _truncated_inside),
    Damage("tail filled with zeros", _zero_filled),
    Damage("one bit flipped in a picture", _flipped_in_a_picture),
    Damage("one bit flipped in a tar header", _flipped_in_a_header),
    Damage("shard missing", _missing),
    Damage("shard replaced by another sound tar", _replaced),
    Damage("sidecar missing", _no_sidecar),
    Damage("sidecar missing, one bit flipped", _without_sidecar),
    Damage("a picture that does not decode", _undecodable, is_undecodable=True),
)


def damaged_copy(damage: Damage, sets: tuple[Path, Path], folder: Path) -> tuple[Dataset, Expected]:
    """Return a damaged copy of the dataset, and what must be reported of it."""
    shutil.copytree(sets[damage.is_undecodable], folder)
    expected = damage.do(open_dataset(str(folder)))
    return open_dataset(str(folder)), expected
