"""Of all runs on a destination the newest may publish, and every older one notices."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pipeline.store.lease
from pipeline.base.errors import Fenced
from pipeline.store.lease import PREFIX, Lease
from pipeline.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_newer_run_fences_the_older_ones(store: LocalStore) -> None:
    first, second, third = (Lease.take(store) for _ in range(3))
    for older in (first, second):
        with pytest.raises(Fenced, match=r"a newer run \(host .*, process \d+\) has taken over"):
            older.check(now=True)
    third.check(now=True)


def test_runs_that_start_at_once_get_different_numbers_and_one_stays(store: LocalStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(lambda _: Lease.take(store), range(8)))
    assert len({lease.number for lease in leases}) == 8

    def is_fenced(lease: Lease) -> bool:
        try:
            lease.check(now=True)
        except Fenced:
            return True
        return False

    assert [lease for lease in leases if not is_fenced(lease)] == [max(leases, key=lambda lease: lease.number)]


def test_an_older_run_is_fenced_when_the_leases_in_between_are_gone(store: LocalStore) -> None:
    first, second, third = (Lease.take(store) for _ in range(3))
    store.delete(f"{PREFIX}{second.number:06d}.json")
    with pytest.raises(Fenced):
        first.check(now=True)
    third.check(now=True)


def test_a_lease_of_another_process_is_checked_as_its_own(store: LocalStore) -> None:
    lease = pickle.loads(pickle.dumps(Lease.take(store)))
    lease.check(now=True)
    Lease.take(store)
    with pytest.raises(Fenced):
        lease.check(now=True)


def test_the_store_is_not_asked_at_every_check(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store.lease, "_CHECK_SECONDS", 1e9)
    lease = Lease.take(store)
    Lease.take(store)
    lease.check()
    monkeypatch.setattr(pipeline.store.lease, "_CHECK_SECONDS", 0.0)
    with pytest.raises(Fenced):
        lease.check()
