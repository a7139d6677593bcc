"""From a SOURCE argument to its rows."""

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.sources.folder import read_folder
from pipeline.sources.rows import SourceRows
from pipeline.sources.table import TABLE_SUFFIXES, read_table


def read_source(url: str, image_column: str, label_column: str, classes: Sequence[str] = ()) -> SourceRows:
    """Lists the pictures of class folders or of a label table, told apart by the URL's suffix.

    Raises:
        ConfigError: A class list is given for folders that number themselves otherwise.
        BitError: As `read_folder` and `read_table`.
    """
    if url.endswith(TABLE_SUFFIXES):
        return read_table(url, image_column, label_column, classes)
    source = read_folder(url)
    if classes and tuple(classes) != source.classes:
        raise ConfigError(f"{url}: class folders number themselves in sorted order; a class list applies to tables")
    return source
