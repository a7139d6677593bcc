"""Two sets that share copies, and their audit: once for all tests."""

import shutil
from pathlib import Path

import pytest

from cluster.audit.base.tables import AuditConfig, AuditTables
from tests.cluster.audit.audits import audited, leaky_sets


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An upstream set of several shards with altered copies of six downstream pictures, one of them byte for byte."""
    return leaky_sets(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="session")
def config(sets: tuple[Path, Path]) -> AuditConfig:
    return AuditConfig(upstream=str(sets[0]), downstream=str(sets[1]), canaries_each=2)


@pytest.fixture(scope="session")
def found(config: AuditConfig, tmp_path_factory: pytest.TempPathFactory) -> AuditTables:
    return audited(config, tmp_path_factory.mktemp("work"))


@pytest.fixture
def tars(sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The upstream tars alone, as a third party would publish them."""
    monkeypatch.setenv("BIT_INDEX_FOLDER", str(tmp_path / "index"))
    folder = tmp_path / "tars"
    folder.mkdir()
    for tar in sets[0].rglob("*.tar"):
        shutil.copy(tar, folder)
    return folder
