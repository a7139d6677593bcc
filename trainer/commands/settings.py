"""Settings of the command line: `--set NAME=VALUE` for any field of a configuration, by dotted name."""

import difflib
import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record

R = TypeVar("R", bound=Record)
_SHOWN_NAMES = 3  # that are near an unknown one


def parsed(config_type: type[Record], option: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of NAME=VALUE settings by dotted name.

    Args:
        config_type: Whose fields they are.
        option: For messages, such as `--set`.
        settings: Such as `recipe.epochs=3`; values are JSON, or else text.

    Raises:
        ConfigError: One is no NAME=VALUE, or there is no such field; names the nearest ones.
    """
    known = _fields_of(config_type)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{option} {setting!r}: write NAME=VALUE")
        if name not in known:
            raise ConfigError(f"{option} {setting}: there is no setting {name}; {_nearest(name, known)}")
        values[name] = _value(value)
    return values


def build(config_type: type[R], fields: dict[str, Any], values: Mapping[str, Any], option: str = "--set") -> R:
    """Return a configuration of fields and settings.

    Raises:
        ConfigError: A value has the wrong type or is out of its range; names setting and value.
    """
    for name, value in values.items():
        *path, last = name.split(".")
        place = fields
        for part in path:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = value
    try:
        return config_type.model_validate(fields)
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error, values, option))) from error


def _problems(error: ValidationError, values: Mapping[str, Any], option: str) -> Iterator[str]:
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        given = option if any(where == name or where.startswith(f"{name}.") for name in values) else "setting"
        yield f"{given} {where}: {problem['msg']} (got {problem['input']!r})"


def _fields_of(config_type: type[Record], prefix: str = "") -> list[str]:
    """Return the dotted names of all fields, those of inner records, too."""
    names: list[str] = []
    for name, field in config_type.model_fields.items():
        names.append(f"{prefix}{name}")
        inner = _record_in(field.annotation)
        if inner:
            names += _fields_of(inner, f"{prefix}{name}.")
    return names


def _record_in(annotation: Any) -> type[Record] | None:
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Record)), None)


def _nearest(name: str, known: list[str]) -> str:
    """Return advice on an unknown name: names like it, or those of its group."""
    last = name.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, known, _SHOWN_NAMES, 0.7)
    near += [each for each in known if difflib.get_close_matches(last, [each.rpartition(".")[2]], 1, 0.8)]
    found = [each for each in dict.fromkeys(same or near) if not name.startswith(f"{each}.")][:_SHOWN_NAMES]
    if found:
        return f"did you mean {' or '.join(found)}?"
    group = name.rpartition(".")[0]
    inside = [each.removeprefix(f"{group}.") for each in known if group and each.startswith(f"{group}.")]
    if inside:
        return f"settings of {group} are {', '.join(inside)}"
    return f"settings are {', '.join(each for each in known if '.' not in each)}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
