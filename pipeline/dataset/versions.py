"""The versions of a dataset, for whoever reads: the published one, and what it could not use."""

import json
from dataclasses import dataclass

import pyarrow as pa
from pydantic import ValidationError

from pipeline.base.errors import ConfigError, NoBucket, NotFound
from pipeline.base.records import FORMAT
from pipeline.dataset.schema import POINTER_KEY, REJECT_SCHEMA, ManifestVersion, from_parquet
from pipeline.store.base import Store, read_checked


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
    except ValidationError as error:
        raise ConfigError(
            f"{store.url}/{POINTER_KEY} is not of a dataset that this release wrote; choose another destination"
        ) from error


def parsed_version(body: bytes, url: str) -> ManifestVersion:
    """Return a version's record.

    Raises:
        ConfigError: It is of another format.
        ValidationError: It is no such record.
    """
    try:
        found = json.loads(body).get("format")
    except (ValueError, AttributeError):
        found = None
    if isinstance(found, str) and found != FORMAT:
        raise ConfigError(f"{url} is of format {found}, this release reads {FORMAT}; use the release that wrote it")
    return ManifestVersion.model_validate_json(body)


def outstanding_rejects(store: Store, version: ManifestVersion) -> pa.Table:
    """Return the rows that could not be used and were not packed since, a table of schema.REJECT_SCHEMA."""
    if not version.rejects:
        return REJECT_SCHEMA.empty_table()
    return from_parquet(read_checked(store, version.rejects, str(version.rejects_sha256)))
