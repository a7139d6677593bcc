"""From SOURCE arguments to sources, told apart by what is there."""

import itertools
from collections.abc import Sequence

from pipeline.errors import ConfigError, NotFound
from pipeline.manifest import POINTER_KEY, ManifestVersion
from pipeline.sources.files import expand, join, read_file, walk_files
from pipeline.sources.folder import folder_source, is_image_name
from pipeline.sources.rows import Source
from pipeline.sources.table import TABLE_SUFFIXES, Columns, table_source
from pipeline.sources.tars import source_of_tars, tar_source
from pipeline.store.url import absolute_url

_LOOKED_AT = 1000  # files of a folder that tell what kind it is


def open_sources(arguments: Sequence[str], columns: Columns) -> list[tuple[str, Source]]:
    """Gives each source with the prefix that keeps the names of its pictures apart from those of the others.

    A single source has no prefix. Of several, it is NAME in `NAME=URL`, else the last part of the URL.

    Raises:
        ConfigError: Two sources have one name, or one cannot be told.
        NotFound: A source does not exist.
    """
    named = [_named(argument) for argument in arguments]
    names = [name for name, _ in named]
    for name in names:
        if len(names) > 1 and names.count(name) > 1:
            raise ConfigError(f"two sources are named {name!r}; write NAME=URL to tell their pictures apart")
    explicit = len(arguments) > 1 or "=" in arguments[0].partition("://")[0]
    return [(f"{name}/" if explicit else "", open_source(url, columns)) for name, url in named]


def _named(argument: str) -> tuple[str, str]:
    name, sign, url = argument.partition("=")
    if sign and name and not any(c in name for c in "/:.*?{"):
        return name, absolute_url(url)
    url = absolute_url(argument)
    return url.rstrip("/").rpartition("/")[2], url


def open_source(url: str, columns: Columns) -> Source:
    """Gives one source: a dataset of ours, tars, tables, or class folders.

    Raises:
        NotFound: It does not exist.
    """
    if url.endswith(TABLE_SUFFIXES):
        return table_source(url, columns)
    if url.endswith(".tar"):
        return tar_source(url, columns.classes or None)
    url = url.rstrip("/")
    published = _published(url, columns)
    if published:
        return published
    found = [entry.key for entry in itertools.islice(walk_files(url), _LOOKED_AT)]
    if not any(is_image_name(name) and "/" in name for name in found):
        # img2dataset keeps a Parquet file beside each tar, so tars are looked for first.
        if any(name.endswith(".tar") for name in found):
            return tar_source(f"{url}/**/*.tar", columns.classes or None)
        if any(name.endswith(".parquet") for name in found):
            return table_source(f"{url}/**/*.parquet", columns)
    return folder_source(url, columns.classes or None)


def _published(url: str, columns: Columns) -> Source | None:
    """Gives the shards of a dataset that `pipeline shard` published, as a source to pack again."""
    try:
        version = ManifestVersion.model_validate_json(read_file(join(url, POINTER_KEY)))
    except (NotFound, ValueError):
        return None
    from pipeline.dataset import open_dataset  # noqa: PLC0415 - only here are datasets sources

    dataset = open_dataset(url, version.version)
    entries = [entry for row in dataset.shards for entry in expand(join(url, row["path"]))]
    return source_of_tars(entries, url, dataset.classes if version.classes else columns.classes or None)
