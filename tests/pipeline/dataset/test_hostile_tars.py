"""Tars that claim what is not so end in an error that names them, soon and without taking memory for the claim."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pipeline.base.errors import CorruptShard
from pipeline.dataset.tar_reader import scan_tar
from tests.conftest import run_here
from tests.tars import write_tar

END = bytes(1024)
GIB = 1 << 30


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a header with this in its size field, and a valid checksum."""
    about = tarfile.TarInfo(name)
    body = bytearray(about.tobuf(tarfile.USTAR_FORMAT))
    body[124:136], body[156:157] = size.ljust(12, b"\0"), kind
    body[148:156] = b" " * 8
    body[148:155] = b"%06o\0" % sum(body)
    return bytes(body)


def base256(value: int) -> bytes:
    """Return a size as GNU tar writes it where eleven octal digits do not do."""
    return (b"\x80" if value >= 0 else b"\xff") + (value % (1 << 88)).to_bytes(11, "big")


def pax(records: bytes) -> bytes:
    return header("x", b"%011o" % len(records), b"x") + records + bytes(-len(records) % 512)


def record(word: str, value: str) -> bytes:
    text = f" {word}={value}\n"
    length = next(n for n in range(len(text), len(text) + 9) if n == len(str(n)) + len(text))
    return f"{length}{text}".encode()


def a_global(word: str, num_bytes: int) -> bytes:
    records = record(word, "x" * num_bytes)
    return header("g", b"%011o" % len(records), b"g") + records + bytes(-len(records) % 512)


IMAGE = header("a.jpg", b"%011o" % 3) + b"abc".ljust(512, b"\0")
HOSTILE = {
    "a header of 300 MiB": header("x", b"%011o" % (300 << 20), b"x") + IMAGE + END,
    "a global header of 300 MiB": header("x", b"%011o" % (300 << 20), b"g") + IMAGE + END,
    "a name of 300 MiB": header("x", b"%011o" % (300 << 20), b"L") + IMAGE + END,
    "a size beyond 63 bits": header("a.jpg", base256(1 << 70)) + END,
    "a size of 4 EiB": header("a.jpg", base256(1 << 62)) + END,
    "a size below zero": header("a.jpg", base256(-1024)) + END,
    "a size below zero in a header": pax(record("size", "-1024")) + IMAGE + END,
    "a size of 10 TiB in a header": pax(record("size", str(10 << 40))) + IMAGE + END,
    "a size of many digits": pax(record("size", "9" * 5000)) + IMAGE + END,
    "a size that is no number": header("a.jpg", b"77z77777777") + END,
    "records that overlap": pax(b"2 " * 20_000 + b"=\n") + IMAGE + END,
    "a record of no length": pax(b"0 path=a\n") + IMAGE + END,
    "headers of headers": pax(record("path", "b.jpg")) * 2000 + IMAGE + END,
    "a sparse map that does not end": pax(
        record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "a.jpg")
    ) + header("a.jpg", b"%011o" % 512) + b"9" * 512 + END,
    "a sparse map that is none": pax(record("GNU.sparse.map", "1,z")) + IMAGE + END,
    "a sparse member beyond 63 bits": pax(record("GNU.sparse.map", "0,0") + record("size", str(1 << 64))) + IMAGE + END,
    "global headers that pile up": b"".join(a_global(f"word{number}", 200_000) for number in range(9)) + IMAGE + END,
}  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.timeout(20)
def test_a_hostile_tar_is_refused_by_name_and_takes_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptShard, match=r"^s3://b/a\.tar (is not a whole tar|has no end mark)"):
            scan_tar(io.BytesIO(body), "s3://b/a.tar")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_whole_header_of_300_mib_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header("x", b"%011o" % (300 << 20), b"x"))
        file.seek(300 << 20, io.SEEK_CUR)
        file.write(IMAGE + END)
    tracemalloc.start()
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(CorruptShard, match="claims 314,572,800 bytes"):
        scan_tar(file, "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_headers_of_many_members_are_not_kept(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{'n' * 3000}/{number:06d}.txt", b"") for number in range(2000)])
    tracemalloc.start()
    with (tmp_path / "a.tar").open("rb") as file:
        scan_tar(file, "a.tar", image_members=["jpg"])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 30_000_000


def test_a_sparse_member_is_no_picture(tmp_path: Path) -> None:
    body = header("a.jpg", b"%011o" % 512, b"S") + bytes(512) + END
    [sample], _ = scan_tar(io.BytesIO(body), "a.tar")
    assert sample.image is None
    assert "sparse" in str(sample.problem)


def test_the_command_names_the_tar_and_exits_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(HOSTILE["a size beyond 63 bits"])
    done = run_here("shard", tmp_path / "a.tar", tmp_path / "out")
    assert done.returncode == 1
    assert f"error: {tmp_path}/a.tar is not a whole tar" in done.stderr
    assert "internal error" not in done.stderr
