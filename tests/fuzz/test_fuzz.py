"""Readers of the files of others end in a result or in an error of ours that names the file."""

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.fuzz.targets import TARGETS, check, damaged, files_of


@pytest.mark.parametrize("name", TARGETS)
def test_the_kept_corpus_ends_as_it_should(name: str) -> None:
    assert [problem for body in files_of(name) if (problem := check(name, body))] == []


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_as_they_should(name: str, data: st.DataObject) -> None:
    assert check(name, data.draw(damaged(name))) is None
