"""Within one set a pair is a candidate of both of its pictures, whichever of them proposed it."""

import pyarrow as pa
from hypothesis import given, strategies as st

from cluster.audit.search.embedding.embedding import COSINE_SCHEMA
from cluster.audit.search.proposals import closed

PICTURES = st.tuples(st.integers(0, 2), st.integers(0, 3))


@given(st.dictionaries(st.tuples(PICTURES, PICTURES), st.sampled_from([0.25, 0.5, 0.75])))
def test_each_pair_is_there_from_both_of_its_pictures_at_the_larger_cosine(
    proposed: dict[tuple[tuple[int, int], tuple[int, int]], float],
) -> None:
    names = COSINE_SCHEMA.names
    rows = [
        dict(zip(names, (*up, *down, cosine), strict=True)) for (up, down), cosine in proposed.items() if up != down
    ]
    expected: dict[tuple[int, ...], float] = {}
    for (up, down), cosine in proposed.items():
        for pair in [] if up == down else [(*up, *down), (*down, *up)]:
            expected[pair] = max(cosine, expected.get(pair, 0.0))
    found = closed(pa.Table.from_pylist(rows, schema=COSINE_SCHEMA)).to_pylist()
    assert [tuple(row.values()) for row in found] == [(*pair, cosine) for pair, cosine in sorted(expected.items())]
