"""Files of weights that claim more than they hold are refused from their headers."""

import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError
from trainer.formats.files import read_weights


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def zipped(member: str, body_of_zeros: int, beginning: bytes = b"") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        file.write(beginning)
        for _ in range(body_of_zeros >> 24):
            file.write(bytes(1 << 24))
    return sink.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return sink.getvalue()


@pytest.mark.parametrize("name", ["w.npz", "w.pth"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(name: str) -> None:
    num_bytes = 600 << 20
    member = "w.npy" if name.endswith("npz") else "archive/data/0"
    body = zipped(member, num_bytes, npy_header((num_bytes // 4,)))
    assert len(body) < 1_000_000
    before = peak_bytes()
    with pytest.raises(
        ConfigError, match=rf"^{name} is no file of plain weights .* unpack to [\d,]+, and weights do not"
    ):
        read_weights(body, name)
    assert peak_bytes() - before < 100_000_000


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62, 1 << 62), (3, 1 << 33)])
def test_an_array_that_claims_more_than_its_bytes_is_refused_before_memory_is_taken(shape: tuple[int, ...]) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("w.npy", npy_header(shape) + bytes(64))
    with pytest.raises(ConfigError, match=r"^w\.npz is no file .* claims the shape"):
        read_weights(sink.getvalue(), "w.npz")


def test_weights_that_are_zero_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", kernel=np.zeros((64, 1 << 16), np.float32))
    torch.save({"kernel": torch.zeros(64, 1 << 10)}, tmp_path / "w.pth")
    assert read_weights((tmp_path / "w.npz").read_bytes(), "w.npz")["kernel"].shape == (64, 1 << 16)
    assert read_weights((tmp_path / "w.pth").read_bytes(), "w.pth")["kernel"].shape == (64, 1 << 10)
