"""Submit sweeps to a real Slurm with jobs/submit.py: train, evaluate, report, and submit again."""

import csv
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import models
from jobs.backends.base import Plan
from jobs.backends.slurm.arrays import split_arrays
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, ROOT, TIMEOUT, Submitted, elements, weights
from trainer.config.schema import Resources
from trainer.runs.directory import RunDirectory

TINY: dict[str, Any] = DANN | {
    "train": {"steps": 20, "batch_size": 8, "log_every": 5},
    "eval": {"metrics": ["accuracy"]},
}
GOOD: dict[str, Any] = TINY | {"name": "good", "method": "source_only", "grid": {"train.seed": [0, 1]}}
BAD: dict[str, Any] = TINY | {"name": "bad", "grid": {"model.lr": [0.01, 1e30]}}


def table(sweep: Submitted) -> list[dict[str, str]]:
    with (sweep.folder / "report" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Iterator[dict[str, Any]]:
    """Submit two sweeps at the same time; yield each with the output of the command."""
    folder, started = tmp_path_factory.mktemp("sweeps"), {}
    for content in (GOOD, BAD):
        sweep = Submitted(cluster, folder, data_root, content)
        started[content["name"]] = sweep, sweep.submit()
    yield started
    cluster.cancel_jobs()


def wait_for_report(submitted: dict[str, Any], name: str) -> Submitted:
    """Wait until the report job of a sweep has ended; return the sweep."""
    sweep: Submitted = submitted[name][0]
    sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    return sweep


def test_the_command_prints_the_job_ids_without_waiting(submitted: dict[str, Any]) -> None:
    sweep, output = submitted["good"]
    (line,) = sweep.submissions()
    assert [(a["stage"], len(a["trials"])) for a in line["arrays"]] == [("train", 2), ("eval", 2)]
    (watched,) = re.findall(r"squeue -j (\S+)", output)
    assert watched.split(",") == [*(array["id"] for array in line["arrays"]), line["report"]]


def test_submitting_a_queued_sweep_again_starts_nothing(submitted: dict[str, Any]) -> None:
    sweep, _ = submitted["good"]
    assert "0 to train" in sweep.submit()
    assert len(sweep.submissions()) == 1


def test_every_trial_is_trained_evaluated_and_reported(submitted: dict[str, Any]) -> None:
    sweep = wait_for_report(submitted, "good")
    for stage in ("train", "eval"):
        assert [sweep.state(job) for job in sweep.jobs(stage)] == ["COMPLETED"] * 2
    rows = table(sweep)
    assert [row["trial"] for row in rows] == [run.name for run in sweep.runs()]
    assert all(row["state"] == "done" and 0 < float(row["accuracy/target"]) < 1 for row in rows)


def test_a_dry_run_shows_the_script_that_slurm_gets(submitted: dict[str, Any]) -> None:
    sweep = wait_for_report(submitted, "good")
    (code,) = re.findall(r"code/\w+", sweep.submissions()[0]["code"])
    # The checkout may be edited while the tests run.
    shown = re.sub(r"/code/\w{12}\b", f"/{code}", sweep.submit("--dry-run", "train.seed=[2,3]"))
    (line,) = sweep.submissions()
    train, evaluate = (array["id"] for array in line["arrays"])
    for job in (train, evaluate, line["report"]):
        script = next((sweep.folder / "slurm").rglob(f"{job}_submission.sh")).read_text()
        expected = re.sub(r"(?<=aft)(\w+:)\d+(:\d+)?", lambda m: m[1] + ("TRAIN0:EVAL1" if m[2] else "TRAIN0"), script)
        assert expected in shown, job


def test_submitting_a_finished_sweep_starts_only_trials_that_were_deleted(submitted: dict[str, Any]) -> None:
    sweep = wait_for_report(submitted, "good")
    assert "nothing to do" in sweep.submit()
    first, second = sweep.runs()
    before = {file: file.read_bytes() for file in second.path.rglob("*") if file.is_file()}
    trained = weights(first.path, 20)
    shutil.rmtree(first.path)
    sweep.submit()
    line = sweep.submissions()[1]
    assert [(a["stage"], a["trials"]) for a in line["arrays"]] == [("train", [first.name]), ("eval", [first.name])]
    wait_for_report(submitted, "good")
    assert weights(first.path, 20) == trained
    assert {file: file.read_bytes() for file in second.path.rglob("*") if file.is_file()} == before
    assert all(row["accuracy/target"] for row in table(sweep))


def test_a_failing_trial_does_not_affect_others_and_the_report_explains_it(submitted: dict[str, Any]) -> None:
    sweep = wait_for_report(submitted, "bad")
    assert [sweep.state(job) for job in sweep.jobs("train")] == ["COMPLETED", "FAILED"]
    assert [sweep.state(job) for job in sweep.jobs("eval")] == ["COMPLETED", "CANCELLED"]
    good, bad = table(sweep)
    assert (good["state"], bad["state"]) == ("done", "failed")
    assert 0 < float(good["accuracy/target"]) < 1
    assert re.search(r"loss joint/\w+ is (nan|inf) at step \d+", (sweep.folder / "report" / "index.html").read_text())


def test_both_ranks_of_two_nodes_have_the_same_weights(cluster: Cluster, tmp_path: Path) -> None:
    """Checked for every method; each rank writes its own weights."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank $SLURM_NODEID"
    command += f" --master-addr n1 --master-port {port} -m tests.processes {tmp_path}"
    cluster.run(
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        "sh",
        "-c",
        f"OMP_NUM_THREADS=1 {command}",
        cwd=ROOT,
        timeout=TIMEOUT,
    )
    for name in models.names():
        zero, one = (load_file(tmp_path / f"{name}.whole.2.{rank}.raw") for rank in (0, 1))
        assert {key: array.tobytes() for key, array in zero.items()} == {key: a.tobytes() for key, a in one.items()}


def test_a_sweep_of_thousands_is_split_into_few_arrays(tmp_path: Path, data_root: str) -> None:
    """No job starts: all are held."""
    trials, largest = 3000, 1001
    resources = DANN["resources"] | {"max_parallel": 20, "slurm": {"hold": True}}
    content = DANN | {"name": "large", "grid": {"train.seed": list(range(trials))}, "resources": resources}
    with Cluster(accounting=False, max_array_size=largest) as own:
        sweep = Submitted(own, tmp_path, data_root, content)
        start = time.monotonic()
        output = sweep.submit("--yes")
        print(f"{trials} trials: {time.monotonic() - start:.1f} s")
        assert output.count("train  job") == 3
        (line,) = sweep.submissions()
        assert [len(array["trials"]) for array in line["arrays"]] == [1000, 1000, 1000]
        rows = own.run("squeue", "-h", "-o", "%F %K").stdout.split("\n")
        throttles = [row.partition("%")[2] for row in rows if "%" in row]
        assert sorted(throttles) == ["6", "7", "7"]
        assert len(list((sweep.folder / "slurm").glob("*/*_submission.sh"))) == 4, "the arrays and the report"
        assert "0 to train" in sweep.submit()


def test_parts_of_a_split_array_share_its_max_parallel() -> None:
    def plan(count: int, lanes: int, evaluated: bool = True) -> Plan:
        runs = [RunDirectory(Path(str(number))) for number in range(count)]
        return Plan(Resources(max_parallel=lanes), runs, runs if evaluated else [], [])

    parts = split_arrays([plan(10, lanes=5)], largest=4)
    assert [(p.stage, [run.name for run in p.runs]) for p in parts[::2]] == [
        ("train", ["0", "1", "2"]),
        ("train", ["3", "4", "5"]),
        ("train", ["6", "7", "8", "9"]),
    ]
    assert [(p.stage, p.runs, p.waits_for) for p in parts[1::2]] == [
        ("eval", train.runs, ("aftercorr", 2 * number)) for number, train in enumerate(parts[::2])
    ]
    assert [p.resources.max_parallel for p in parts[::2]] == [1, 2, 2]
    # Five parts have three lanes, so two parts wait for the end of an earlier one.
    narrow = split_arrays([plan(10, lanes=3, evaluated=False)], largest=2)
    assert [p.resources.max_parallel for p in narrow] == [1] * 5
    assert [p.waits_for for p in narrow] == [None, None, None, ("afterany", 0), ("afterany", 1)]
    assert narrow[3].dependency(["7", "8", "9"]) == {"dependency": "afterany:7"}
    assert [len(p.runs) for p in split_arrays([plan(4, 20), plan(1, 20, evaluated=False)], largest=1000)] == [4, 4, 1]


def test_a_single_job_has_no_element_index() -> None:
    assert elements("7", 1) == ["7"]
    assert elements("7", 2) == ["7_0", "7_1"]
