"""Numbers with their units, as people read them."""


def human_bytes(num_bytes: float) -> str:
    """Return 1536 as '1.5 kB', in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def quantity(count: int, singular: str) -> str:
    """Return 1 and 'class' as '1 class', 2,000 as '2,000 classes'."""
    return f"{count:,} {plural(count, singular)}"


def plural(count: int, singular: str) -> str:
    """Return the word in the number that a count asks for."""
    return singular if count == 1 else singular + ("es" if singular.endswith(("s", "ch")) else "s")


def human_seconds(seconds: float) -> str:
    """Return 5400 as '1.5 hours'."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return quantity(round(seconds), "second")
