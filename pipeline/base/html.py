"""HTML pages that open offline: one file, pictures inlined, no script, no request."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pipeline.base.quantities import human_bytes, plural, quantity
from pipeline.base.text import printable


def render_page(package: str, template: str, *, parts_of: tuple[str, ...] = (), **values: object) -> bytes:
    """Return the page of a template; a missing value is an error, text is escaped, hidden characters are written out.

    Args:
        package: Whose folder `templates/` holds it.
        template: Its name there.
        parts_of: Further packages whose templates it includes.
        values: What it shows.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (package, *parts_of, "pipeline.base")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "quantity": quantity, "plural": plural, "human_bytes": human_bytes}
    return printable(environment.get_template(template).render(**values), keep="\n\t").encode()


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"
