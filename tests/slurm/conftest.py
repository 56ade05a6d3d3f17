"""Fixtures of the tests that need a real Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, not_installed
from tests.slurm.submitted import DANN, undisturbed


def require_slurm() -> None:
    """Skip where no Cluster can start; but fail where CI lacks the programs: it would be green unseen."""
    packages = missing()
    if packages and os.environ.get("CI"):
        pytest.fail(not_installed(packages))
    if packages:
        pytest.skip(not_installed(packages))
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")


@pytest.fixture(scope="session")
def slurm() -> None:
    """For tests that start a Cluster of their own."""
    require_slurm()


@pytest.fixture(scope="session")
def cluster(slurm: None) -> Iterator[Cluster]:
    """Two nodes with accounting, shared by the whole session: a test leaves no job behind and no daemon dead."""
    with Cluster() as shared:
        yield shared


@pytest.fixture(scope="session")
def whole(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """The run directory of the trial DANN, trained by two processes of this machine that nothing disturbed."""
    return undisturbed(tmp_path_factory.mktemp("whole"), data_root, {"name": "whole", **DANN}, processes=2)


@pytest.fixture(scope="session")
def single(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """The same, trained by one process."""
    return undisturbed(tmp_path_factory.mktemp("single"), data_root, {"name": "single", **DANN}, processes=1)
