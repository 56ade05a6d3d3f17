"""What is not staged is not queued."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, Submitted


def test_a_sweep_whose_data_are_not_staged_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    data = {"source": "svhn", "target": "mnistm5k", "size": 28}
    sweep = Submitted(cluster, tmp_path, str(tmp_path / "data"), DANN | {"name": "far", "data": data})
    remedy = rf"svhn-28x28x3.*python jobs/stage\.py {sweep.file} train\.steps=9\n"
    with pytest.raises(AssertionError, match=remedy):
        sweep.submit("train.steps=9")
    assert not sweep.logs.exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_what_comes_with_the_packages_is_staged_by_submit(cluster: Cluster, tmp_path: Path) -> None:
    resources = DANN["resources"] | {"slurm": {"hold": True}}
    content = DANN | {"name": "near", "data": {"source": "digits"}, "method": "source_only", "resources": resources}
    sweep = Submitted(cluster, tmp_path, str(tmp_path / "data"), content)
    try:
        assert f"staging digits into {tmp_path / 'data'}" in sweep.submit()
        assert (tmp_path / "data/cache/digits-8x8x1-v1/origin.json").exists()
        assert sweep.jobs("train")
    finally:
        cluster.cancel_jobs()
