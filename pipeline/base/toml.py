"""Files of settings that people write, as TOML."""

import tomllib
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, NotFound


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is no TOML; says where.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file ({error})") from error
