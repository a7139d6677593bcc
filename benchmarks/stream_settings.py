"""The settings of a contender of stream.py, and the samples of the tars it reads."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a contender is to do.

    Attributes:
        contender: Key of CONTENDERS or BYTES.
        url: Our dataset.
        tars: The same dataset as webdataset's and Ray Data's readers want it.
        litdata: The same bytes as litdata stores them.
        mode: "rate" times batches, "epoch" gives what comes out, "bytes" times samples without decoding, "pack" writes
            the folder of litdata.
        decoder: "pil" as the peers' documentation has it, or "simplejpeg", which is what ours uses.
        workers: Processes.
        warm: Batches (samples in mode "bytes") before the clock starts.
        count: Batches (samples) that are timed.
        memory: Samples the memory of all processes as well; costs time, so that rates of it do not count.
        budget_bytes: Of our stream; None leaves its own default.
    """

    contender: str
    url: str
    tars: list[str]
    litdata: str
    mode: str = "rate"
    decoder: str = "pil"
    workers: int = 1
    batch: int = 64
    px: int = 224
    warm: int = 24
    count: int = 48
    memory: bool = False
    budget_bytes: int | None = None

    @property
    def endless(self) -> bool:
        """Epoch after epoch, not one."""
        return self.mode != "epoch"


def tar_samples(settings: Settings) -> Iterator[tuple[bytes, int]]:
    """Yield the samples of the tars, once, with the standard library."""
    for path in settings.tars:
        with tarfile.open(path) as archive:
            image = b""
            for member in archive:
                extension = member.name.rpartition(".")[2]
                if extension == "jpg":
                    image = archive.extractfile(member).read()
                elif extension == "cls":
                    yield image, int(archive.extractfile(member).read())
