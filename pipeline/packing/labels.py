"""Labels of several sources on their way to one numbering: names and numbers as text, until all of them are known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError
from pipeline.dataset.tar_reader import MOST_CLASSES
from pipeline.packing.sources.label_lists import WHOLE, as_whole, with_values
from pipeline.packing.sources.rows import Source

_PADDED = r"^-?0\d"
_FRACTION = r"^-?\d*\.\d+$"
_MISSING = pa.array(["nan", "NaN"])  # what programs print where they have no label
_Where = tuple[str, str]  # a label and its place


@dataclass
class _Found:
    """The first label of each kind, with its place.

    Attributes:
        numbers: That are numbers already.
        names: That are names even where they look like numbers.
        whole: Text that is a whole number.
        padded: Text that is a whole number with zeros in front.
        words: Any other text.
        doubtful: Text that is no label as it stands.
        invalid: A number that is no class number.
    """

    numbers: _Where | None = None
    names: _Where | None = None
    whole: _Where | None = None
    padded: _Where | None = None
    words: _Where | None = None
    doubtful: _Where | None = None
    invalid: _Where | None = None
    urls: dict[str, str] = field(default_factory=dict)


class Labels:
    """Gathers the labels of all sources, then numbers them.

    Numbers stay numbers where nothing has names, or where all sources share one list of names. Text is a number only
    where all of it is. Otherwise names are numbered in sorted order, after those that the dataset has already.
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
        self._found = _Found()

    def taken(
        self, labels: pa.Array, source: Source, place: Callable[[int], str] = lambda row: f"row {row + 1}"
    ) -> pa.Array:
        """Return lists of numbers (int32) or text as lists of text.

        Args:
            labels: One list a row.
            source: Where they come from.
            place: Returns what a row is called in messages.

        Raises:
            ConfigError: A label is not in the list of names.
        """
        values = labels.flatten()
        is_text = pa.types.is_string(values.type)

        def where(bad: pa.Array) -> _Where:
            at = pc.index(bad, True).as_py()
            return str(values[at]), place(pc.list_parent_indices(labels)[at].as_py())

        if self._shared:
            values = _in_shared_list(values, is_text, self._shared, source.url, where)
            is_text = False
        elif not is_text and source.classes:
            values, is_text = pa.array(source.classes).take(values), True
            self._note("names", pc.is_valid(values), where, source)
        elif not is_text:
            self._note("numbers", pc.is_valid(values), where, source)
        elif source.are_names:
            self._note("names", pc.is_valid(values), where, source)
        else:
            self._note_text(values, where, source)
        if is_text:
            self._names.update(pc.unique(values).to_pylist())
        return with_values(labels, values.cast(pa.string()))

    def _note_text(self, values: pa.Array, where: Callable[[pa.Array], _Where], source: Source) -> None:
        whole = pc.match_substring_regex(values, WHOLE)
        padded = pc.and_(whole, pc.match_substring_regex(values, _PADDED))
        doubtful = pc.or_(pc.is_in(values, _MISSING), pc.match_substring_regex(values, _FRACTION))
        plain = pc.and_(whole, pc.invert(padded))
        doubtful = pc.and_(doubtful, pc.invert(whole))
        self._note("padded", padded, where, source)
        self._note("whole", plain, where, source)
        self._note("doubtful", doubtful, where, source)
        self._note("words", pc.invert(pc.or_(whole, doubtful)), where, source)
        numbers = pc.if_else(plain, as_whole(values), pa.scalar(None, pa.string())).cast(pa.int64())
        invalid = pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, MOST_CLASSES))
        self._note("invalid", pc.fill_null(invalid, False), where, source)

    def _note(self, kind: str, which: pa.Array, where: Callable[[pa.Array], _Where], source: Source) -> None:
        if getattr(self._found, kind) is None and pc.any(which).as_py():
            setattr(self._found, kind, where(which))
            self._found.urls[kind] = source.url

    @property
    def _are_names(self) -> bool:
        found = self._found
        return bool(found.names or found.words or found.padded)

    def check(self) -> None:
        """Refuse labels that are doubtful; call it when all was taken.

        Raises:
            ConfigError: Names the label and its row.
        """
        found = self._found
        remedy = "Correct it, or list all names in a file for --classes"
        number = found.numbers or found.whole
        if found.names and number:
            names, numbers = found.urls["names"], found.urls["numbers" if found.numbers else "whole"]
            raise ConfigError(
                f"labels are all numbers or all names; those of {names} are names, those of {numbers} are numbers"
            )
        if found.doubtful:
            label, place = found.doubtful
            raise ConfigError(f"{place}: label {label!r} is neither a class number nor a name. {remedy}")
        is_padded = found.padded and (found.numbers or self._clash())
        word = found.words or (found.padded if is_padded else None)
        if word and number:
            raise ConfigError(
                f"labels are all numbers or all names; {word[1]} has {word[0]!r}, {number[1]} has {number[0]!r}. "
                f"{remedy}"
            )
        if found.invalid and not self._are_names:
            label, place = found.invalid
            raise ConfigError(
                f"{place}: label {label} is not a class number from 0 to {MOST_CLASSES - 1:,}. Correct it, or, if "
                f"labels are numbers of another kind, list them in a file for --classes"
            )

    def _clash(self) -> bool:
        """Return whether two texts are the same number, as `1` and `01`."""
        texts = [name for name in self._names if name.strip("-").replace(".", "").isdigit()]
        return len({float(text) for text in texts}) < len(texts)

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
        return with_values(labels, as_whole(values).cast(pa.int32()))


def _in_shared_list(
    values: pa.Array, is_text: bool, classes: tuple[str, ...], url: str, where: Callable[[pa.Array], _Where]
) -> pa.Array:
    if is_text:
        numbers = pc.index_in(values, pa.array(classes))
        missing = pc.is_null(numbers)
        if pc.any(missing).as_py():
            label, place = where(missing)
            raise ConfigError(f"{url}: class {label!r} is not in the class list ({place})")
        return numbers
    beyond = pc.greater_equal(values, len(classes))
    if pc.any(beyond).as_py():
        label, place = where(beyond)
        raise ConfigError(f"{url}: label {label} is beyond the {len(classes):,} names of the class list ({place})")
    return values
