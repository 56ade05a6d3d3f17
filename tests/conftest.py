"""What tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests import warm
from trainer.data.cache import stage
from trainer.data.dataset import Form

# Files that take minutes start first, so that xdist's workers end at about the same time. Not those of tests/slurm:
# workers that run in the process of tests/jobs kill its other children, such as Slurm's daemons.
LONG = ("test_learning.py", "test_generative.py", "test_launchers.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files of LONG to the front, in that order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def leave_no_process() -> Iterator[None]:
    """Kill what a test has left running."""
    yield
    warm.kill_remaining()


def pytest_sessionfinish() -> None:
    """End the server of warm processes."""
    warm.server.stop()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """A data root with the embedded sets, which are staged once for all of xdist's workers; each has a copy."""
    common, root = Path(tmp_path_factory.getbasetemp().parent, "staged"), tmp_path_factory.mktemp("data")
    if worker_id == "master":
        common = root
    with FileLock(f"{common}.lock"):
        for name in ("mnist5k", "mnistm5k"):
            stage(name, common, Form(28, 3))
    if common != root:
        shutil.copytree(common, root, dirs_exist_ok=True)
    return str(root)
