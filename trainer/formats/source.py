"""Where weights come from: a file or a folder of another code base, with what stands beside it."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from pipeline.base.errors import NotFound
from pipeline.store.any_url import join, parent, read_file
from trainer.formats.description import Description, read_description
from trainer.formats.files import read_weights
from trainer.formats.places import IN_FOLDERS, SUFFIXES, if_there


@dataclass(frozen=True)
class Source:
    """Weights by the keys of a file.

    Attributes:
        values: All arrays.
        sha256: Of the file.
        description: What stands beside it of classes and images.
        described_by: URL of the file or folder where that stands; None where nothing does.
    """

    values: dict[str, Tensor]
    sha256: str
    description: Description
    described_by: str | None


def open_weights(url: str) -> Source:
    """Read a file of weights, or the one in a folder of timm or transformers.

    Classes and resolution are read from FILE.json, as our exports have it, or from the config.json of a folder.

    Raises:
        NotFound: There is no such file, and no folder with one.
        ConfigError: The file is none of plain weights; see `read_weights` and `read_description`.
    """
    url = url.rstrip("/")
    inside = [] if url.endswith(SUFFIXES) or "?" in url else [join(url, name) for name in IN_FOLDERS]
    found = next(((each, body) for each in inside if (body := if_there(each)) is not None), None)
    file, body = found or (url, _file(url))
    values = read_weights(body, file)
    description, described_by = _described(file)
    return Source(values, hashlib.sha256(body).hexdigest(), description, described_by)


def _described(file: str) -> tuple[Description, str | None]:
    """Return what stands beside a file of its classes and images, and where."""
    if "?" in file:  # nothing stands beside a signed URL
        return Description(), None
    beside, folder = f"{file}.json", parent(file)
    config = if_there(beside)
    if config is not None:
        return read_description(config, b"{}", beside), beside
    config = if_there(join(folder, "config.json")) if file.endswith(IN_FOLDERS) else None
    if config is not None:
        processor = if_there(join(folder, "preprocessor_config.json")) or b"{}"
        return read_description(config, processor, f"{folder}/config.json"), folder
    return Description(), None


def _file(url: str) -> bytes:
    try:
        return read_file(url)
    except NotFound as error:
        raise NotFound(f"{url} is neither a file nor a folder with {' or '.join(IN_FOLDERS)}; check it") from error
