"""A sweep is queued on Slurm only if its datasets are staged."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, Submitted


def test_a_sweep_without_staged_data_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    data = {"source": "svhn", "target": "mnistm5k", "size": 28}
    sweep = Submitted(cluster, tmp_path, str(tmp_path / "data"), DANN | {"name": "far", "data": data})
    remedy = rf"svhn-28x28x3.*python jobs/stage\.py {sweep.file} train\.steps=9\n"
    with pytest.raises(AssertionError, match=remedy):
        sweep.submit("train.steps=9")
    assert not sweep.logs.exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_submit_stages_bundled_datasets(cluster: Cluster, tmp_path: Path) -> None:
    content = DANN | {"name": "near", "data": {"source": "digits", "size": 16}, "method": "source_only"}
    content["resources"] = DANN["resources"] | {"slurm": {"hold": True}}
    sweep = Submitted(cluster, tmp_path, str(tmp_path / "data"), content)
    try:
        assert f"staging digits into {tmp_path / 'data'}" in sweep.submit()
        assert (tmp_path / "data/cache/digits-16x16x1-v1/origin.json").exists()
        assert sweep.jobs("train")
    finally:
        cluster.cancel_jobs()
