"""From SOURCE arguments to sources, whose kind is recognised by what is there."""

import itertools
import os
from collections.abc import Sequence

from pipeline.base.errors import ConfigError, NotFound
from pipeline.base.ignored import HIDDEN, Ignored, is_hidden, kind_of
from pipeline.dataset.schema import POINTER_KEY, ManifestVersion
from pipeline.dataset.versions import refuse_datasets_below
from pipeline.packing.sources.folder import folder_source, is_image_name
from pipeline.packing.sources.rows import TABLE_SUFFIXES, Source
from pipeline.packing.sources.table import Columns, source_of_tables, table_source
from pipeline.packing.sources.tars import source_of_tars, tar_source
from pipeline.store.any_url import join, read_file, walk_files
from pipeline.store.base import Entry
from pipeline.store.url import absolute_url

_INSPECTED_FILES = 1000  # of a folder, to recognise its kind


def open_sources(arguments: Sequence[str], columns: Columns) -> list[tuple[str, Source]]:
    """Return each source with the prefix that keeps the names of its pictures apart from those of the others.

    A single source has no prefix. Of several, it is NAME in `NAME=URL`, else the last part of the URL.

    Raises:
        ConfigError: Two sources have the same name, or one cannot be read.
        NotFound: A source does not exist.
    """
    named = [named_source(argument) for argument in arguments]
    names = [name for name, _, _ in named]
    for name in names:
        if len(names) > 1 and names.count(name) > 1:
            raise ConfigError(f"two sources are named {name!r}; write NAME=URL to keep their pictures apart")
    is_prefixed = len(named) > 1 or named[0][2]
    return [(f"{name}/" if is_prefixed else "", open_source(url, columns)) for name, url, _ in named]


def named_source(argument: str) -> tuple[str, str, bool]:
    """Return name and absolute URL of a source, and whether the argument names it: NAME=URL, where that is no file."""
    name, sign, url = argument.partition("=")
    if sign and name and not any(c in name for c in "/:.*?{") and not os.path.lexists(argument):
        return name, absolute_url(url), True
    url = absolute_url(argument)
    return url.rstrip("/").rpartition("/")[2], url, False


def open_source(url: str, columns: Columns) -> Source:
    """Return one source: a dataset that `pipeline shard` packed, tars, tables, or class folders.

    Raises:
        NotFound: It does not exist.
    """
    if url.endswith(TABLE_SUFFIXES):
        return table_source(url, columns)
    if url.endswith(".tar"):
        return tar_source(url, columns)
    url = url.rstrip("/")
    published = _published(url, columns)
    if published:
        return published
    found = [entry.key for entry in itertools.islice(walk_files(url), _INSPECTED_FILES)]
    if not any(is_image_name(name) and "/" in name and not is_hidden(name) for name in found):
        # img2dataset keeps a Parquet file beside each tar, so tars are looked for first.
        for suffix in (".tar", ".parquet"):
            if any(name.endswith(suffix) and not is_hidden(name) for name in found):
                return _all_below(url, suffix, columns)
    return folder_source(url, columns.classes or None, with_labels=columns.label is not None)


def _all_below(url: str, suffix: str, columns: Columns) -> Source:
    """Return the tars or tables anywhere below a folder; everything else there is ignored and counted."""
    entries, manifests, ignored = [], [], Ignored()
    for entry in walk_files(url):
        if entry.key.endswith(POINTER_KEY):
            manifests.append(entry.key)
        if is_hidden(entry.key):
            ignored.add(HIDDEN, entry.key)
        elif not entry.key.endswith(suffix):
            ignored.add(kind_of(entry.key), entry.key)
        else:
            entries.append(entry._replace(key=join(url, entry.key)))
    entries.sort(key=lambda entry: entry.key)
    refuse_datasets_below(url, manifests)
    make = source_of_tars if suffix == ".tar" else source_of_tables
    return make(entries, url, columns, ignored=ignored.kinds)


def _published(url: str, columns: Columns) -> Source | None:
    """Return the shards of a dataset that `pipeline shard` published, as a source to pack again."""
    try:
        version = ManifestVersion.model_validate_json(read_file(join(url, POINTER_KEY)))
    except (NotFound, ValueError):
        return None
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415 - only here are datasets sources

    dataset = open_dataset(url, version.version)
    # An object named in a manifest never changes: its digest identifies it as a time would.
    entries = [
        Entry(dataset.shard_url(row["shard"]), row["num_bytes"], int(row["blake3"][:12], 16)) for row in dataset.shards
    ]
    classes = dataset.classes if version.classes else None
    return source_of_tars(entries, url, columns, classes=classes, is_ours=True)
