"""Classes of a model and of a dataset, matched by name: their order and their number need not be the same."""

from collections.abc import Sequence

from pipeline.base.errors import ConfigError

_NAMED = 5  # classes in a message; a choice


def match_classes(
    known: Sequence[str], given: Sequence[str], known_by: str, given_by: str, *, ignore_unknown: bool = False
) -> tuple[int, ...]:
    """Return for each label of a dataset the label of the model that has the same name.

    Args:
        known: Class names of the model, by label.
        given: Class names of the dataset, by label.
        known_by: What the model's are from, for messages.
        given_by: What the dataset's are from.
        ignore_unknown: Whether classes that the model does not know are left out, as -1, instead of refused.

    Raises:
        ConfigError: The dataset has classes that the model does not know, or none that it knows; names some.
    """
    if tuple(known) == tuple(given):  # even where two have one name
        return tuple(range(len(known)))
    labels = {name: label for label, name in enumerate(known)}
    if len(labels) < len(known):
        twice = sorted({name for name in known if list(known).count(name) > 1})
        raise ConfigError(f"{known_by} has two classes of one name ({some(twice)}); pack it again with other names")
    unknown = [name for name in given if name not in labels]
    if len(unknown) == len(given):
        raise ConfigError(
            f"{given_by} has no class of {known_by}: {some(given)} against {some(known)}; classes are matched by name"
        )
    if unknown and not ignore_unknown:
        raise ConfigError(
            f"{given_by} has {len(unknown)} of {len(given)} classes that {known_by} does not know: {some(unknown)}; "
            f"classes are matched by name: rename them, or leave their pictures out with --ignore-unknown-classes"
        )
    return tuple(labels.get(name, -1) for name in given)


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
