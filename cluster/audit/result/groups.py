"""Duplicates within one set, grouped as stars: every member is a copy of its centre, never of a copy of a copy."""

from collections import defaultdict
from collections.abc import Iterable

Address = tuple[int, int]  # shard, row


def stars(pairs: Iterable[tuple[Address, Address]]) -> dict[Address, list[Address]]:
    """Group pictures by their duplicates.

    The picture with the most duplicates becomes the first centre and takes all of them; then the next one among those
    that are left. Of equally many, the first address is the centre. A chain a-b-c without a-c so ends as one star
    around b, and a-b-c-d as two.

    Args:
        pairs: Duplicates, in any order and direction.

    Returns:
        The members of each centre without itself, by address; centres without a member left over are not listed.
    """
    copies: dict[Address, set[Address]] = defaultdict(set)
    for one, other in pairs:
        copies[one].add(other)
        copies[other].add(one)
    taken: set[Address] = set()
    found: dict[Address, list[Address]] = {}
    for centre in sorted(copies, key=lambda address: (-len(copies[address]), address)):
        if centre in taken:
            continue
        members = sorted(copies[centre] - taken)
        taken |= {centre, *members}
        if members:
            found[centre] = members
    return dict(sorted(found.items()))
