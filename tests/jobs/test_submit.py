"""The submit command: bad input, rerunning, a failing trial, Ctrl-C; with real trainings of a few steps."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
import yaml

from jobs import plan, submit
from jobs.plan import lock_sweep
from tests import warm
from trainer.config.sweep import load_trials
from trainer.errors import ConfigError
from trainer.runs.directory import find_runs
from trainer.runs.placement import create_run_directories
from trainer.stop import POLL_INTERVAL

ROOT = Path(__file__).parents[2]
DANN = "method: dann\ndata: {source: mnist5k, target: mnistm5k}\n"
DDPM = "method: ddpm\ndata: {dataset: mnistm5k}\nmodel: {sampling_steps: 50}\n"
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": 10, "batch_size": 8, "log_every": 5},
    "trials": [{"method": "source_only", "grid": {"train.seed": [0, 1]}}, {"method": "dann"}],
}


def command(
    data_root: str, *words: str, program: str = "submit", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command of jobs/ as a user does, but without a terminal."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root, "COLUMNS": "200"} | environment
    return warm.run(
        [sys.executable, f"jobs/{program}.py", *words],
        cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the content of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def trained(logs: Path) -> dict[str, tuple[int, bytes]]:
    """Return the snapshot of the files that a training would touch: no report, evaluation, submissions or code."""
    others = ("/eval", "tensorboard", "code/")
    return {path: state for path, state in snapshot(logs).items() if "-" in path and not any(o in path for o in others)}


def submissions(logs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (logs / "submissions.jsonl").read_text().splitlines()]


def table(logs: Path) -> list[dict[str, str]]:
    with (logs / "report" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def processes_in(folder: Path) -> dict[int, str]:
    """Return pid → command line of running processes that name or have open a path below `folder`."""
    lines = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            streams = [Path(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)]
            with suppress(OSError):
                if str(folder) in " ".join([line, *(str(stream.readlink()) for stream in streams)]):
                    lines[process.pid] = line
    return lines


# Bad input

# Possible mistakes of a user: files, the arguments after the sweep, and fragments of the message.
WRONG: dict[str, tuple[dict[str, str | bytes], list[str], list[str]]] = {
    "missing file": ({"near.yaml": ""}, [], ["x.yaml", "cannot read", "No such file", "near.yaml"]),
    "directory": ({"x.yaml/near.yaml": ""}, [], ["x.yaml", "Is a directory", "near.yaml"]),
    "yaml syntax": ({"x.yaml": DANN + "train: {steps: 3\n"}, [], ["x.yaml:4:1", "not valid YAML", "check"]),
    "tab": ({"x.yaml": DANN + "train:\n\tsteps: 3\n"}, [], ["x.yaml:4:1", "not valid YAML", "spaces, not with tabs"]),
    "not text": ({"x.yaml": DANN.encode() + b"name: \xff\n"}, [], ["x.yaml:3", "save it as UTF-8"]),
    "empty file": ({"x.yaml": ""}, [], ["x.yaml", "must be a mapping", "sweeps/README.md"]),
    "list": ({"x.yaml": "- method: dann\n"}, [], ["x.yaml", "must be a mapping"]),
    "key twice": ({"x.yaml": DANN + "data: {source: usps}\n"}, [], ["x.yaml:3", "data", "line 2", "remove one"]),
    "unknown key": ({"x.yaml": DANN + "trian: {steps: 3}\n"}, [], ["x.yaml", "trian", "did you mean 'train'", "zip"]),
    "in model": ({"x.yaml": DANN + "model: {gama: 3}\n"}, [], ["x.yaml", "model.gama", "'model.gamma'", "model.lr"]),
    "in data": ({"x.yaml": DANN.replace("}", ", sise: 3}")}, [], ["x.yaml", "data.sise", "'size'", "source"]),
    "in train": ({"x.yaml": DANN + "train: {step: 3}\n"}, [], ["x.yaml", "train.step", "'steps'", "batch_size"]),
    "in eval": ({"x.yaml": DANN + "eval: {metric: [tsne]}\n"}, [], ["x.yaml", "eval.metric", "'metrics'"]),
    "in resources": ({"x.yaml": DANN + "resources: {gpus: 3}\n"}, [], ["x.yaml", "resources.gpus", "gpus_per_node"]),
    "in a base": ({"x.yaml": "base: y.yaml\n", "y.yaml": DANN + "trian: {}\n"}, [], ["y.yaml", "trian", "'train'"]),
    "missing base": ({"x.yaml": "base: y.yaml\n"}, [], ["y.yaml", "No such file", "x.yaml"]),
    "on the command line": ({"x.yaml": DANN}, ["train.stesp=3"], ["command line", "train.stesp", "'steps'"]),
    "no value": ({"x.yaml": DANN}, ["train.steps"], ["command line", "train.steps", "key=value"]),
    "bad value": ({"x.yaml": DANN}, ["train.seed=[0"], ["command line", "train.seed", "'[0'", "quote"]),
    "wrong type": ({"x.yaml": DANN + "train: {steps: many}\n"}, [], ["x.yaml", "train.steps", "'many'", "integer"]),
    "fraction": ({"x.yaml": DANN + "train: {steps: 1.5}\n"}, [], ["x.yaml", "train.steps", "1.5", "integer"]),
    "boolean": ({"x.yaml": DANN + "train: {steps: yes}\n"}, [], ["x.yaml", "train.steps", "True", "number"]),
    "not a mapping": ({"x.yaml": DANN + "train: 5\n"}, [], ["x.yaml", "train", "5", "must be a mapping"]),
    "model is not a mapping": ({"x.yaml": DANN + "model: [5]\n"}, [], ["x.yaml", "model", "[5]", "must be a mapping"]),
    "out of range": ({"x.yaml": DANN}, ["model.lr=-1"], ["command line", "model.lr", "-1", "greater than 0"]),
    "infinite": ({"x.yaml": DANN}, ["model.lr=.inf"], ["command line", "model.lr", "inf", "finite"]),
    "other choice": ({"x.yaml": DANN}, ["train.precision=fp32"], ["command line", "train.precision", "fp32", "bf16"]),
    "time out of range": (
        {"x.yaml": DANN + "resources: {time: '00:99:00'}\n"},
        [],
        ["x.yaml", "resources.time", "59"],
    ),
    "no time to save": (
        {"x.yaml": DANN + "resources: {time: '00:01:00'}\n"},
        [],
        ["x.yaml", "resources", "signal_delay", "give more time"],
    ),
    "a reserved option": (
        {"x.yaml": DANN + "resources: {slurm: {nodes: 3}}\n"},
        [],
        ["x.yaml", "resources.slurm", "use resources.nodes"],
    ),
    "a line break in an option": (
        {"x.yaml": DANN + 'resources: {slurm: {comment: "a\\ntouch b"}}\n'},
        [],
        ["x.yaml", "resources.slurm", "line break"],
    ),
    "an invalid option": (
        {"x.yaml": DANN + 'resources: {slurm: {"x y": 1}}\n'},
        [],
        ["x.yaml", "resources.slurm", "no sbatch option"],
    ),
    "time as a number": ({"x.yaml": DANN + "resources: {time: 36000}\n"}, [], ["x.yaml", "resources.time", "quotes"]),
    "bad name": ({"x.yaml": DANN + "name: ../a\n"}, [], ["x.yaml", "name", "'../a'", "letters"]),
    "no method": ({"x.yaml": "data: {source: mnist5k}\n"}, [], ["x.yaml", "method", "missing", "source_only"]),
    "unknown method": ({"x.yaml": DANN.replace("dann", "dan")}, [], ["x.yaml", "method", "'dan'", "mean 'dann'"]),
    "unknown dataset": ({"x.yaml": DANN}, ["data.source=mnist5"], ["command line", "data.source", "mnist5k", "svhn"]),
    "unknown metric": ({"x.yaml": DANN + "eval: {metrics: [tsn]}\n"}, [], ["x.yaml", "eval.metrics.0", "'tsne'"]),
    "single metric": ({"x.yaml": DANN + "eval: {metrics: tsne}\n"}, [], ["x.yaml", "eval.metrics", "'tsne'", "list"]),
    "batch": (
        {"x.yaml": DANN + "train: {batch_size: 10, micro_batches: 3}\n"},
        [],
        ["x.yaml", "train.batch_size", "10", "is not divisible by 3", "9"],
    ),
    "other size": ({"x.yaml": DANN}, ["data.target=svhn"], ["command line", "data", "28 px", "32 px", "set data.size"]),
    "no target": ({"x.yaml": DANN.replace(", target: mnistm5k", "")}, [], ["x.yaml", "data", "give data.target"]),
    "no data": ({"x.yaml": "method: dann\ndata:\n"}, [], ["x.yaml", "data", "give data.source", "nothing"]),
    "twice": ({"x.yaml": DANN + "grid: {train.seed: [1, 1]}\n"}, [], ["x.yaml", "two trials are the same", "seed=1"]),
    "no trials": ({"x.yaml": DANN + "trials: []\n"}, [], ["x.yaml", "trials", "must be a list of mappings"]),
    "single value": ({"x.yaml": DANN + "grid: {train.seed: 3}\n"}, [], ["x.yaml", "grid.train.seed", "must be a list"]),
    "steps above T": (
        {"x.yaml": DDPM + "grid: {model.timesteps: [50, 10]}\n"},
        [],
        ["x.yaml", "model.sampling_steps: 50", "must not be above model.timesteps: 10"],
    ),
    "no parallel": ({"x.yaml": DANN}, ["--max-parallel", "0"], ["command line", "--max-parallel", "at least 1"]),
    "many": ({"x.yaml": DANN + f"grid: {{train.seed: {[*range(51)]}}}"}, [], ["command line", "51 trials", "--yes"]),
    "logs is a file": ({"x.yaml": DANN, "file": ""}, ["--runs", "{}/file"], ["file", "is not a directory", "--runs"]),
}  # fmt: skip


def check_refused(result: "subprocess.CompletedProcess[str]", *fragments: str) -> None:
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert [fragment for fragment in fragments if fragment not in line] == [], line


@pytest.mark.parametrize("case", WRONG)
def test_invalid_input_is_one_message_with_file_key_and_remedy(
    case: str, tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run in this process, to save the start of one for each case."""
    monkeypatch.setenv("TURNOUT_DATA", data_root)
    monkeypatch.setattr("jobs.submit.signal.signal", lambda number, handler: None)
    files, words, fragments = WRONG[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(tmp_path)
    words = ["--runs", str(tmp_path / "logs"), "--cluster", "local", *(word.format(tmp_path) for word in words)]
    code = submit.main([str(tmp_path / "x.yaml"), *words])
    check_refused(subprocess.CompletedProcess([], code, *capsys.readouterr()), *fragments)
    assert not (tmp_path / "logs").exists()
    assert snapshot(tmp_path) == before


def test_source_and_target_with_different_classes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in this process, with a patched dataset, since all included datasets have ten classes."""
    from dataclasses import replace

    from trainer.data.registry import DATASETS

    monkeypatch.setitem(DATASETS, "usps", replace(DATASETS["mnist5k"], name="usps", classes=4))
    (tmp_path / "x.yaml").write_text(DANN)
    with pytest.raises(ConfigError, match=r"^command line: data: usps .*4 classes.* and mnistm5k .*10 classes.*choose"):
        load_trials(tmp_path / "x.yaml", ["data.source=usps"])


def test_cluster_slurm_is_refused_without_slurm(tmp_path: Path, data_root: str) -> None:
    (tmp_path / "x.yaml").write_text(DANN)
    words = [str(tmp_path / "x.yaml"), "--runs", str(tmp_path / "logs")]
    result = command(data_root, *words, "--cluster", "slurm", PATH=str(tmp_path))
    check_refused(result, "command line", "--cluster", "no sbatch", "--cluster local")
    result = command(data_root, *words, "--dry-run", PATH=str(tmp_path))
    assert (result.returncode, "on this machine (there is no sbatch here)" in result.stdout) == (0, True)
    assert not (tmp_path / "logs").exists()


def test_unavailable_data_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("method: source_only\ndata: {source: svhn}\n")
    unreachable = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "ftp")}
    words = [str(tmp_path / "x.yaml"), "--runs", str(tmp_path / "logs"), "--cluster", "local"]
    result = command(str(tmp_path / "empty"), *words, **unreachable)
    check_refused(result, "x.yaml", "data.source", "train_32x32.mat is missing", "TURNOUT_DATA")
    assert not (tmp_path / "logs").exists()


def test_a_run_directory_of_another_config_is_not_overwritten(tmp_path: Path, data_root: str) -> None:
    (tmp_path / "x.yaml").write_text(DANN)
    other, mine = load_trials(tmp_path / "x.yaml", ["train.seed=5"]), load_trials(tmp_path / "x.yaml", [])
    (path,) = create_run_directories(tmp_path / "logs" / "x", mine)
    (path / "config.yaml").write_text(other[0].config.to_yaml())
    before = snapshot(tmp_path)
    words = ["--runs", str(tmp_path / "logs"), "--cluster", "local"]
    result = command(data_root, str(tmp_path / "x.yaml"), *words)
    check_refused(result, path.name, other[0].identity, mine[0].identity, "move it away")
    assert snapshot(tmp_path) == before


def test_help_list_and_dry_run_do_not_import_torch(tmp_path: Path, data_root: str) -> None:
    sweep = write(tmp_path / "x.yaml", TINY | {"trials": [{"method": "dann"}], "grid": {"train.seed": [*range(1000)]}})
    dry = [sweep, "--dry-run", "--runs", str(tmp_path / "logs"), "--cluster"]
    for words in (["--help"], ["--list"], [*dry, "local"], [*dry, "slurm"]):
        program = f"import sys\nfrom jobs.submit import main\ntry:\n  main({words})\nfinally:\n  print(*sys.modules)"
        began = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        print(f"{' '.join(words[1:] or words)}: {time.monotonic() - began:.2f} s")
        assert result.returncode == 0, result.stderr
        *output, modules = result.stdout.splitlines()
        assert not {"torch", "torchvision", "accelerate", "optuna", "sklearn", "scipy", "matplotlib"} & set(
            modules.split()
        )
        if "--dry-run" in words:
            assert sum(line.strip().startswith("pending  dann,seed=") for line in output) == 1000
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_says_which_data_are_missing_and_what_stages_them(tmp_path: Path) -> None:
    content = TINY | {"data": {"source": "mnist", "target": "mnistm5k", "size": 28}}  # bundled data need no download
    words = [write(tmp_path / "x.yaml", content), "model.lr=0.1", "--dry-run", "--cluster", "local"]
    result = command(str(tmp_path / "empty"), *words, "--runs", str(tmp_path / "logs"))
    expected = f"not staged yet: mnist; this downloads and decodes them: python jobs/stage.py {words[0]} model.lr=0.1"
    assert expected in result.stdout.splitlines()


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As in `… | head -1`: here it has left before the first line."""
    shutil.copytree(ROOT / "tests/fixtures/version1", tmp_path / "version1")
    sweep = next(path.parent.parent for path in (tmp_path / "version1").rglob("config.yaml"))
    for words in (["jobs/submit.py", "--list"], ["jobs/status.py", str(sweep)]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b""), words


# Rerunning the same command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """Train a sweep of three trials; return the folder of its file and logs."""
    folder = tmp_path_factory.mktemp("finished")
    sweep = write(folder / "tiny.yaml", TINY)
    result = command(data_root, sweep, "--runs", str(folder / "logs"), "--cluster", "local", "--max-parallel", "2")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "3 trials (3 pending); 3 to train, 0 to evaluate on this machine" in result.stdout
    assert "report/index.html" in result.stdout
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path, data_root: str) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Copy the trained sweep to tmp_path/logs/tiny; return a function that submits it, with other content if given."""
    shutil.copytree(finished / "logs", tmp_path / "logs")

    def submit(**content: Any) -> "subprocess.CompletedProcess[str]":
        sweep = write(tmp_path / "tiny.yaml", TINY | content)
        return command(data_root, sweep, "--runs", str(tmp_path / "logs"), "--cluster", "local", "--max-parallel", "2")

    return submit


Again = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_report_has_a_row_for_each_trial(finished: Path) -> None:
    logs = finished / "logs" / "tiny"
    assert sorted((row["method"], row["train.seed"], row["state"]) for row in table(logs)) == [
        ("dann", "0", "done"),
        ("source_only", "0", "done"),
        ("source_only", "1", "done"),
    ]
    assert (
        {row["trial"] for row in table(logs)}
        == {run.name for run in find_runs(logs)}
        == set(submissions(logs)[0]["trials"])
    )
    assert (logs / "sweep.yaml").read_text() == (finished / "tiny.yaml").read_text()


def test_finished_trials_are_not_trained_again(again: Again, tmp_path: Path, data_root: str) -> None:
    logs = tmp_path / "logs" / "tiny"
    before, recorded = trained(logs), submissions(logs)
    result = again()
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 trials (3 done); 0 to train, 0 to evaluate" in result.stdout
    # The same holds for the copy of the sweep file in the sweep's directory.
    copy = command(data_root, str(logs / "sweep.yaml"), "--runs", str(tmp_path / "logs"), "--cluster", "local")
    assert (copy.returncode, copy.stderr) == (0, "")
    assert trained(logs) == before
    assert submissions(logs) == recorded


def test_eval_evaluates_every_finished_trial(again: Again, tmp_path: Path, data_root: str) -> None:
    logs = tmp_path / "logs" / "tiny"
    first, *others = find_runs(logs)
    (first.path / "done").unlink()
    result = warm.run(
        [sys.executable, "eval/main.py", str(logs), "--metrics", "accuracy"],
        cwd=ROOT, env=os.environ | {"TURNOUT_DATA": data_root}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, "2 of 3 trials are done" in result.stderr) == (0, True), result.stderr
    assert not first.evaluation()
    assert all(run.evaluation()["metrics"] for run in others)


def test_only_a_deleted_trial_is_trained_again_and_to_the_same_weights(again: Again, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "tiny"
    gone = next(run for run in find_runs(logs) if run.name.startswith("dann"))
    weights = (gone.path / "weights" / "step-000010.safetensors").read_bytes()
    others = {path: state for path, state in trained(logs).items() if not path.startswith(gone.name)}
    shutil.rmtree(gone.path)
    result = again()
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 trials (2 done, 1 pending); 1 to train" in result.stdout
    assert submissions(logs)[-1]["trials"] == [gone.name]
    assert {path: state for path, state in trained(logs).items() if not path.startswith(gone.name)} == others
    assert (gone.path / "weights" / "step-000010.safetensors").read_bytes() == weights
    assert [row["state"] for row in table(logs)] == ["done"] * 3


def test_only_a_failed_trial_is_started_again(again: Again, tmp_path: Path, data_root: str) -> None:
    logs = tmp_path / "logs" / "tiny"
    before = trained(logs)
    diverges = [*TINY["trials"], {"method": "source_only", "model.lr": 1e30}]
    for attempt in (1, 2):
        result = again(trials=diverges)
        assert result.returncode == 1
        bad = next(run for run in find_runs(logs) if "lr" in run.name)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {bad.path}: ")
        assert "supervised/label" in line
        assert " at step " in line
        assert str(bad.path / "train.log") in line
        assert bad.state() == "failed"
        assert [entry["trials"] for entry in submissions(logs)[1:]] == [[bad.name]] * attempt
        assert {path: state for path, state in trained(logs).items() if not path.startswith(bad.name)} == before
        assert [row["state"] for row in table(logs)].count("failed") == 1
        assert len(table(logs)) == 4

    status = command(data_root, str(logs), "--failed", "--json", program="status")
    (row,) = [json.loads(line) for line in status.stdout.splitlines()]
    assert (row["trial"], row["state"], "supervised/label" in row["error"]) == (bad.name, "failed", True)

    shutil.rmtree(next(run.path for run in find_runs(logs) if run.name.startswith("dann")))
    dry = [str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "logs"), "--cluster", "local", "--dry-run"]
    assert "2 done, 1 pending, 1 failed); 2 to train" in command(data_root, *dry).stdout
    assert "2 done, 1 pending, 1 failed); 1 to train" in command(data_root, *dry, "--retry-failed").stdout


def test_a_sweep_that_another_command_trains_is_refused(again: Again, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "tiny"
    with (logs / ".submitting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (logs / ".submitting.by").write_text("process 7 on n1 trains")
        before = snapshot(logs)
        check_refused(again(), "tiny", "another command is at work", "process 7 on n1", "wait for it or stop it")
        assert snapshot(logs) == before
    assert again().returncode == 0


def test_a_command_waits_while_another_one_queues_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / ".submitting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / ".submitting.by").write_text("process 7 on n1 queues")
        monkeypatch.setattr(plan, "LOCK_TIMEOUT", 0.1)
        with (
            pytest.raises(ConfigError, match=r"another command .*process 7 on n1 queues"),
            lock_sweep(tmp_path, "trains"),
        ):
            pass
        monkeypatch.setattr(plan, "LOCK_TIMEOUT", 60)
        Timer(1, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with lock_sweep(tmp_path, "trains"):
            assert f"process {os.getpid()} on " in (tmp_path / ".submitting.by").read_text()
    assert not (tmp_path / ".submitting.by").exists()


def test_a_metric_added_later_is_evaluated_without_training(again: Again, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "tiny"
    run = next(run for run in find_runs(logs) if run.name.startswith("dann"))
    changed: dict[str, Any] = {"eval": {"metrics": ["accuracy"]}, "trials": [{"method": "dann"}]}

    def products() -> dict[str, tuple[int, bytes]]:
        return {path: state for path, state in trained(logs).items() if "/weights/" in path or "/checkpoints/" in path}

    # A failed evaluation is an error of the sweep.
    weights = run.path / "weights" / "step-000010.safetensors"
    weights.rename(tmp_path / "backup")
    weights.write_bytes(b"no weights")
    result = again(**changed)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {run.path}: evaluation failed: ")
    assert str(run.path / "eval.log") in line

    # Rerun, the command evaluates but does not train; rerun once more, it does neither.
    (tmp_path / "backup").rename(weights)
    before = products()
    result = again(**changed)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 trials (1 done); 0 to train, 1 to evaluate" in result.stdout
    (row,) = (row for row in table(logs) if row["method"] == "dann")
    assert 0 <= float(row["accuracy/target"]) <= 1
    assert "0 to train, 0 to evaluate" in again(**changed).stdout
    assert products() == before


# Status


def test_status_shows_every_trial(finished: Path, tmp_path: Path, data_root: str) -> None:
    logs = finished / "logs" / "tiny"
    shown = command(data_root, str(logs), program="status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(run.name in shown.stdout for run in find_runs(logs))
    assert "3 done" in shown.stdout
    rows = [json.loads(line) for line in command(data_root, str(logs), "--json", program="status").stdout.splitlines()]
    assert {(row["trial"], row["state"], row["step"], row["steps"]) for row in rows} == {
        (run.name, "done", 10, 10) for run in find_runs(logs)
    }
    failed = command(data_root, str(logs), "--failed", "--json", program="status")
    assert (failed.returncode, failed.stdout) == (0, "")
    check_refused(command(data_root, str(tmp_path / "none"), program="status"), "none", "no trials", "submit.py")


# Ctrl-C


@pytest.fixture
def start(tmp_path: Path, data_root: str) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts a submission in its own session; remaining processes are killed after the test."""

    def submit(logs: str, *words: str, **content: Any) -> "subprocess.Popen[str]":
        sweep = write(tmp_path / f"{logs}.yaml", TINY | content)
        return warm.Popen(
            [sys.executable, "jobs/submit.py", sweep, "--runs", str(tmp_path / logs), "--cluster", "local", *words],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    yield submit
    for pid in processes_in(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_of(logs: Path) -> int:
    """Return the newest step of any trial in the logs."""
    return max((line["step"] for run in find_runs(logs) for line in run.metrics()), default=0)


def test_after_ctrl_c_the_same_command_resumes_bit_identically(tmp_path: Path, start: Any) -> None:
    steps = {"train": TINY["train"] | {"steps": 200, "log_every": 1}}
    long = {"method": "dann"}
    undisturbed = start("whole", trials=[long], **steps)
    process = start("logs", "--max-parallel", "1", trials=[long, {"method": "source_only", "train.steps": 5}], **steps)
    logs = tmp_path / "logs" / "tiny"
    wait_until(lambda: step_of(logs) > 3, process)
    # Suspend the trainer until the stop file exists and is due to be read: then it stops at its very next step.
    trainer = find_runs(logs)[0].status()["pid"]
    os.kill(trainer, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: list(find_runs(logs)[0].path.glob("stop.*")), process)
    time.sleep(POLL_INTERVAL)
    os.kill(trainer, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "rerun the same command to resume" in output
    assert processes_in(logs) == {}
    trial, waiting = find_runs(logs)
    assert (trial.state(), waiting.state()) == ("stopped", "pending")
    (marker,) = trial.path.glob("stopped.*.json")
    stopped = json.loads(marker.read_text())["step"]
    assert 3 < stopped < 200
    assert (trial.path / "latest").read_text().strip() == f"step-{stopped:06d}"
    assert [path.name for path in waiting.path.iterdir()] == ["config.yaml"]

    process = start("logs", "--max-parallel", "2", trials=[long, {"method": "source_only", "train.steps": 5}], **steps)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "2 trials (1 stopped, 1 pending); 2 to train" in output
    assert f"resuming from step {stopped}" in (trial.path / "train.log").read_text()
    output, _ = undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0, output
    (whole,) = find_runs(tmp_path / "whole" / "tiny")
    weights = "weights/step-000200.safetensors"
    assert (trial.path / weights).read_bytes() == (whole.path / weights).read_bytes()
    assert [line["step"] for line in trial.metrics()] == list(range(1, 201))


def test_a_second_ctrl_c_kills_all_processes_at_once(tmp_path: Path, start: Any) -> None:
    """This includes torchrun's workers, which have sessions of their own and never reach a step boundary: they hang."""
    trial = {"method": "dann", "resources.processes_per_node": 2}
    process = start("logs", trials=[trial], train=TINY["train"] | {"steps": 10**6})
    logs = tmp_path / "logs" / "tiny"

    def list_workers() -> list[int]:
        lines = processes_in(logs).items()
        return [pid for pid, line in lines if "trainer/main.py" in line and "jobs/agent.py" not in line]

    wait_until(lambda: len(list_workers()) == 2, process)
    for pid in list_workers():
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "killing every trial now" in output
    assert processes_in(logs) == {}
    (run,) = find_runs(logs)
    assert run.state() in ("pending", "stopped")
