"""What tests share."""

import pytest

from trainer.data.cache import stage
from trainer.data.dataset import Form


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data root in which the embedded sets are staged once for all tests."""
    root = tmp_path_factory.mktemp("data")
    for name in ("mnist5k", "mnistm5k"):
        stage(name, root, Form(28, 3))
    return str(root)
