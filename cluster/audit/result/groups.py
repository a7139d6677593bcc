"""Duplicates within one set as groups: every member is a copy of the group's centre, never only a copy of a copy."""

from collections import defaultdict
from collections.abc import Iterable

from cluster.audit.base.tables import ShardRow


def group_copies(pairs: Iterable[tuple[ShardRow, ShardRow]]) -> dict[ShardRow, list[ShardRow]]:
    """Group pictures with their duplicates.

    The picture with the most duplicates becomes the first centre and takes all of them as members, then the next one
    of those that are left. Of several with equally many, the one with the first address is the centre. So a chain a-b-c
    without a-c ends as one group around b, and a-b-c-d as two.

    Args:
        pairs: Duplicates, in any order and direction.

    Returns:
        The members of each centre, without the centre, sorted; a centre whose duplicates are all taken is not listed.
    """
    copies: dict[ShardRow, set[ShardRow]] = defaultdict(set)
    for one, other in pairs:
        copies[one].add(other)
        copies[other].add(one)
    taken: set[ShardRow] = set()
    groups: dict[ShardRow, list[ShardRow]] = {}
    for centre in sorted(copies, key=lambda address: (-len(copies[address]), address)):
        if centre in taken:
            continue
        members = sorted(copies[centre] - taken)
        taken |= {centre, *members}
        if members:
            groups[centre] = members
    return dict(sorted(groups.items()))
