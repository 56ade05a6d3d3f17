"""Fixtures for the tests that need a real Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, not_installed
from tests.slurm.submitted import DANN, train_seeds, train_uninterrupted


def require_slurm() -> None:
    """Skip if no Cluster can start here; fail instead if programs are missing in CI, where a skip goes unnoticed."""
    packages = missing()
    if packages and os.environ.get("CI"):
        pytest.fail(not_installed(packages))
    if packages:
        pytest.skip(not_installed(packages))
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")


@pytest.fixture(scope="session")
def slurm() -> None:
    """Require Slurm, for tests that start a Cluster of their own."""
    require_slurm()


@pytest.fixture(scope="session")
def cluster(slurm: None) -> Iterator[Cluster]:
    """Yield a cluster of two nodes with accounting for all tests; each leaves it without jobs and with all daemons."""
    with Cluster() as shared:
        yield shared


@pytest.fixture(scope="session")
def whole(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """Return the run directory of the trial DANN, trained without interruption by two processes on this machine."""
    return train_uninterrupted(tmp_path_factory.mktemp("whole"), data_root, {"name": "whole", **DANN}, processes=2)


@pytest.fixture(scope="session")
def single(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """Return the run directory of the same trial, trained by one process."""
    return train_uninterrupted(tmp_path_factory.mktemp("single"), data_root, {"name": "single", **DANN}, processes=1)


@pytest.fixture(scope="session")
def alone(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> dict[int, Path]:
    """Return seed 0 … 4 → run directory of the trial DANN, trained without interruption by one process."""
    return train_seeds(tmp_path_factory.mktemp("alone"), data_root, {"name": "alone", **DANN}, range(5))
