"""The versions of a dataset, for whoever reads: the published one, and what it could not use."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import ConfigError, CorruptShard, NoBucket, NotFound
from pipeline.base.parsing import parse_record
from pipeline.base.records import FORMAT
from pipeline.dataset.schema import POINTER_KEY, REJECT_SCHEMA, ManifestVersion
from pipeline.dataset.tables import read_table
from pipeline.store.any_url import join, read_file
from pipeline.store.base import Store

_SHOWN_DATASETS = 8
_FORMAT_NAME = FORMAT.partition("/")[0].encode()  # without its version


@dataclass(frozen=True)
class Published:
    """The version that MANIFEST.json points to, with what a compare-and-swap needs."""

    version: ManifestVersion
    body: bytes
    tag: str


def published_version(store: Store) -> Published | None:
    """Return the version that MANIFEST.json points to, or None where nothing is published.

    Raises:
        ConfigError: There is a MANIFEST.json of another kind.
    """
    try:
        body, tag = store.read_tagged(POINTER_KEY)
    except NoBucket:
        raise
    except NotFound:
        return None
    try:
        return Published(parsed_version(body, f"{store.url}/{POINTER_KEY}"), body, tag)
    except CorruptShard as error:
        raise ConfigError(
            f"{store.url}/{POINTER_KEY} is not of a dataset that this release wrote; choose another destination"
        ) from error


def parsed_version(body: bytes, url: str) -> ManifestVersion:
    """Return a version's record.

    Raises:
        ConfigError: It is of another format.
        CorruptShard: It is no such record.
    """
    try:
        found = json.loads(body).get("format")
    except (ValueError, AttributeError, RecursionError):
        found = None
    if isinstance(found, str) and found != FORMAT:
        raise ConfigError(f"{url} is of format {found}, this release reads {FORMAT}; use the release that wrote it")
    return parse_record(ManifestVersion, body, url)


def outstanding_rejects(store: Store, version: ManifestVersion) -> pa.Table:
    """Return the rows that could not be used and were not packed since, a table of schema.REJECT_SCHEMA."""
    if not version.rejects:
        return REJECT_SCHEMA.empty_table()
    return read_table(store, version.rejects, version.rejects_sha256)


def refuse_datasets_below(url: str, keys: Iterable[str]) -> None:
    """Refuse a folder that is no dataset itself and has some below it: together they would be one, test set and all.

    Args:
        url: Of the folder.
        keys: Of files below it, relative; those that are no manifest are passed over.

    Raises:
        ConfigError: With the datasets' names.
    """
    folders = sorted(key.removesuffix(f"/{POINTER_KEY}") for key in keys if key.endswith(f"/{POINTER_KEY}"))
    found = [folder for folder in folders if _FORMAT_NAME in read_file(join(url, f"{folder}/{POINTER_KEY}"))]
    if found:
        base = url.rstrip("/")
        shown = ", ".join(f"{base}/{folder}" for folder in found[:_SHOWN_DATASETS])
        more = f" and {len(found) - _SHOWN_DATASETS:,} more" if len(found) > _SHOWN_DATASETS else ""
        what = f"{len(found):,} datasets, which are not read as one" if len(found) > 1 else "a dataset below it"
        raise ConfigError(f"{url} holds {what}: {shown}{more}; name the one you mean")
