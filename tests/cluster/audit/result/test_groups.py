"""Groups of copies: every member is a copy of its centre, and no pair of copies is left whole."""

from hypothesis import given, strategies as st

from cluster.audit.result.groups import group_copies

addresses = st.tuples(st.integers(0, 1), st.integers(0, 8))


@given(st.lists(st.tuples(addresses, addresses).filter(lambda pair: pair[0] != pair[1])))
def test_every_member_of_a_group_is_a_copy_of_its_centre(pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    linked = {frozenset(pair) for pair in pairs}
    groups = group_copies(pairs)
    members = [member for group in groups.values() for member in group]
    assert all(groups.values())
    assert len(members) == len(set(members))
    assert not set(members) & set(groups)
    assert all(frozenset((centre, member)) in linked for centre, group in groups.items() for member in group)
    assert not any(pair & set(groups) == pair for pair in linked)
    left = {address for pair in pairs for address in pair} - set(members)
    assert not any(pair <= left for pair in linked if not pair & set(groups)), "a pair is left whole"
    assert group_copies([(other, one) for one, other in reversed(pairs)]) == groups


def test_a_chain_does_not_become_one_group() -> None:
    chain = [((0, number), (0, number + 1)) for number in range(4)]
    assert group_copies(chain) == {(0, 1): [(0, 0), (0, 2)], (0, 3): [(0, 4)]}
