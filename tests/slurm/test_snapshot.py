"""Jobs on a real Slurm run the code as of their submission."""

import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.snapshot import PACKAGES
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, ROOT, Submitted


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_edits_of_the_checkout_do_not_affect_queued_jobs(cluster: Cluster, tmp_path: Path, data_root: str) -> None:
    """The path of the checkout contains a blank and an apostrophe, and the data root is relative to it."""
    checkout = tmp_path / "my checkout's"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=A", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tests: begin"]):
        subprocess.run(["git", *identity, *words], cwd=checkout, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    content = DANN | {
        "name": "edited",
        "method": "source_only",
        "train": {"steps": 20, "batch_size": 8},
        "eval": {"metrics": ["accuracy"]},
        "resources": DANN["resources"] | {"slurm": {"hold": True}},
    }
    (tmp_path / "elsewhere").mkdir()
    sweep = Submitted(cluster, tmp_path / "elsewhere", data_root, content)
    sweep.checkout, sweep.logs, sweep.folder = checkout, checkout / "logs", checkout / "logs" / "edited"
    (checkout / "data").symlink_to(data_root)
    sweep.environment |= {"PYTHONPATH": str(checkout), "TURNOUT_DATA": "data"}
    try:
        sweep.submit()
        for package in PACKAGES:
            for file in (checkout / package).rglob("*.py"):
                file.write_text("this is no Python")
        (line,) = sweep.submissions()
        arrays = [array["id"] for array in line["arrays"]]
        cluster.run("scontrol", "release", ",".join(arrays))
        sweep.wait_for(line["report"], "COMPLETED")
        assert [sweep.state(job) for job in arrays] == ["COMPLETED", "COMPLETED"], sweep.output()
        assert "accuracy" in (sweep.folder / "report" / "results.md").read_text()
        assert (line["commit"], line["dirty"]) == (head.strip(), True), "the link to the data is new"
        assert (sweep.folder / line["code"] / "trainer" / "loop.py").read_text() == (
            ROOT / "trainer" / "loop.py"
        ).read_text()
    finally:
        cluster.cancel_jobs()
