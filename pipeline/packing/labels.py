"""Labels of several sources on their way to one numbering: names and numbers as text, until all of them are known."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError
from pipeline.packing.sources.label_lists import with_values
from pipeline.packing.sources.rows import Source


class Labels:
    """Gathers the labels of all sources, then numbers them.

    Numbers stay numbers where nothing has names, or where all sources share one list of names. Otherwise names are
    numbered in sorted order, after those that the dataset has already.
    """

    def __init__(self, sources: Sequence[Source], first_classes: tuple[str, ...]) -> None:
        """Begin.

        Args:
            sources: All that will be read.
            first_classes: Names that the dataset to append to numbers its labels by; new names follow them.
        """
        lists = {source.classes for source in sources}
        self._shared = lists.pop() if len(lists) == 1 and not first_classes else None
        self._first = first_classes
        self._names: set[str] = set()
        self._are_names: bool | None = None
        self._first_url = ""

    def taken(self, labels: pa.Array, source: Source) -> pa.Array:
        """Return lists of numbers (int32) or names as lists of text.

        Raises:
            ConfigError: Numbers here and names there; or a label that is not in the list of names.
        """
        values = labels.flatten()
        are_names = pa.types.is_string(values.type)
        if self._shared:
            values, are_names = self._in_shared_list(values, are_names, self._shared, source.url), False
        elif not are_names and source.classes:
            values, are_names = pa.array(source.classes).take(values), True
        if len(values):
            self._check_kind(are_names, source.url)
        if are_names:
            self._names.update(pc.unique(values).to_pylist())
        return with_values(labels, values.cast(pa.string()))

    def class_names(self) -> tuple[str, ...]:
        """Return the names by label; empty where labels are numbers without names."""
        if self._are_names:
            return (*self._first, *sorted(self._names - set(self._first)))
        return self._shared or self._first

    def numbered(self, labels: pa.Array) -> pa.Array:
        """Return what `taken` returned as lists of int32. Call it when all was taken."""
        values = labels.flatten()
        if self._are_names:
            return with_values(labels, pc.index_in(values, pa.array(self.class_names())))
        return with_values(labels, values.cast(pa.int32()))

    @staticmethod
    def _in_shared_list(values: pa.Array, are_names: bool, classes: tuple[str, ...], url: str) -> pa.Array:
        if are_names:
            numbers = pc.index_in(values, pa.array(classes))
            if numbers.null_count:
                missing = values.filter(pc.is_null(numbers))[0].as_py()
                raise ConfigError(f"{url}: class {missing!r} is not in the class list")
            return numbers
        if len(values) and pc.max(values).as_py() >= len(classes):
            raise ConfigError(f"{url}: label {pc.max(values)} is beyond the {len(classes):,} names of the class list")
        return values

    def _check_kind(self, are_names: bool, url: str) -> None:
        if self._are_names is None:
            self._are_names, self._first_url = are_names, url
        elif are_names != self._are_names:
            raise ConfigError(
                f"labels are all numbers or all names; those of {self._first_url} are "
                f"{'names' if self._are_names else 'numbers'}, those of {url} are not"
            )
