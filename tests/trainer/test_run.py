"""The trainer as a command: start = resume, one lock, one log without overlap, and errors that can be acted on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests import warm
from trainer.loop import take_step
from trainer.runs.costs import read_costs
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
STEPS = 40
WEIGHTS = f"weights/step-{STEPS:06d}.safetensors"


def start(runs: Path, data_root: str, *overrides: str) -> "subprocess.Popen[str]":
    settings = [f"train.steps={STEPS}", "train.batch_size=8", "train.log_every=7", "train.checkpoint_every=10"]
    command = [sys.executable, "trainer/main.py", "sweeps/dann.yaml", *settings, f"data.root={data_root}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return warm.Popen([*command, "--runs", str(runs)], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def train(runs: Path, data_root: str, *overrides: str, code: int = 0) -> str:
    process = start(runs, data_root, *overrides)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return errors


def only_run(runs: Path) -> Path:
    (run,) = runs.glob("dann/*")
    return run


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in RunDirectory(run).metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """A run that was never disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    train(runs, data_root)
    return only_run(runs)


def until(look: Any, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_directory_has_the_documented_files(whole: Path) -> None:
    assert RunDirectory(whole).state() == "done"
    assert [line["step"] for line in losses(whole)] == [7, 14, 21, 28, 35, 40]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-000020", "step-000030"]
    assert (whole / "latest").read_text() == "step-000030\n"
    assert load_file(whole / WEIGHTS)
    status = RunDirectory(whole).status()
    assert (status["state"], status["step"], status["steps"]) == ("done", STEPS, STEPS)
    assert set(status["losses"]) == {"joint/label", "joint/source_domain", "joint/target_domain"}
    costs = read_costs(RunDirectory(whole))
    shares = {name: value for name, value in costs.items() if name.endswith("_share")}
    assert set(shares) == {"data_share", "updates_share", "checkpoints_share", "logging_share"}
    assert 0 < sum(shares.values()) < 1.001
    assert (costs["attempts"], shares["updates_share"] > 0, shares["checkpoints_share"] > 0) == (1, True, True)
    assert costs["startup_seconds"] > 0.1  # importing torch


def test_training_does_not_import_the_compiler(tmp_path: Path, data_root: str) -> None:
    """It is not used, and takes longer to import than this whole training."""
    arguments = ["sweeps/dann.yaml", "train.steps=3", "train.batch_size=8", f"data.root={data_root}"]
    program = (
        "import sys, trainer.main; code = trainer.main.main(sys.argv[1:]); print(code, 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *arguments, "--runs", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert result.stdout.split() == ["0", "False"]


@pytest.mark.parametrize(
    "build",
    [
        lambda params: torch.optim.Adam(params, lr=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, amsgrad=True),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda params: torch.optim.RMSprop(params, lr=0.1),
    ],
)
def test_take_step_matches_the_step_of_the_optimizer(
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    def step(take: Callable[[torch.optim.Optimizer], Any]) -> tuple[torch.Tensor, Any]:
        weight = nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = build([weight])
        for factor in (1.0, 0.3, 2.0):
            (factor * weight**3).sum().backward()
            take(optimizer)
            optimizer.zero_grad()
        assert torch.is_grad_enabled()
        return weight.detach(), optimizer.state_dict()

    (weight, state), (expected, expected_state) = step(take_step), step(lambda optimizer: optimizer.step())
    assert torch.equal(weight, expected)
    assert repr(state) == repr(expected_state)


def test_a_finished_run_exits_at_once(whole: Path, data_root: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert "already done" in train(whole.parents[1], data_root)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_stopped_run_resumes_bit_identically(
    number: signal.Signals, whole: Path, tmp_path: Path, data_root: str
) -> None:
    process = start(tmp_path, data_root)
    until(lambda: list(tmp_path.glob("dann/*/metrics.jsonl")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    run = only_run(tmp_path)
    assert RunDirectory(run).state() == "stopped"
    step = json.loads((run / "stopped.direct.json").read_text())["step"]
    assert step < STEPS
    assert f"resuming from step {step}" in train(tmp_path, data_root)
    assert RunDirectory(run).state() == "done"
    assert not list(run.glob("stopped.*"))
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses(run) == losses(whole)
    assert [RunDirectory(run).status()["costs"][name] for name in ("attempts", "steps")] == [2, STEPS]


def test_a_run_stopped_at_the_rungs_of_a_search_ends_the_same(whole: Path, tmp_path: Path, data_root: str) -> None:
    settings = [f"train.steps={STEPS}", "train.batch_size=8", "train.log_every=7", "train.checkpoint_every=10"]
    words = ["sweeps/dann.yaml", *settings, f"data.root={data_root}", "--runs", str(tmp_path)]
    program = (
        "import sys; from trainer.main import main; words = sys.argv[1:];"
        "sys.exit(max(main([*words, *stop]) for stop in (['--until', '13'], ['--until', '20'], ['--until', '20'], [])))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    warm.run([sys.executable, "-c", program, *words], cwd=ROOT, env=environment, check=True)
    run = only_run(tmp_path)
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses(run) == losses(whole)
    assert [*RunDirectory(run).exported_weights()] == [13, 20, STEPS]


def test_a_stop_file_stops_a_run(tmp_path: Path, data_root: str) -> None:
    process = start(tmp_path, data_root, "train.steps=100000")
    until(lambda: list(tmp_path.glob("dann/*/metrics.jsonl")), process)
    (only_run(tmp_path) / "stop.direct").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped at step" in errors


def test_a_killed_run_resumes_from_its_checkpoint_without_overlapping_curves(
    whole: Path, tmp_path: Path, data_root: str
) -> None:
    process = start(tmp_path, data_root)
    until(lambda: list(tmp_path.glob("dann/*/checkpoints/step-000020")), process)
    process.kill()
    process.communicate()
    run = only_run(tmp_path)
    assert RunDirectory(run).state() == "stopped"  # exited without an error record: it can be resumed
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "torn')
    assert "resuming from step" in train(tmp_path, data_root)
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses(run) == losses(whole)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("joint/label")] == [line["step"] for line in losses(whole)]
    assert [event.value for event in board.Scalars("joint/label")] == pytest.approx(
        [line["joint/label"] for line in losses(whole)]
    )


def test_a_run_killed_before_its_first_checkpoint_starts_over_without_overlapping_curves(
    whole: Path, tmp_path: Path, data_root: str
) -> None:
    """Killed before its first checkpoint; a stop file that was left behind stops nothing."""
    process = start(tmp_path, data_root, "train.checkpoint_every=1000")
    until(lambda: list(tmp_path.glob("dann/*/metrics.jsonl")) and losses(only_run(tmp_path)), process)
    process.kill()
    process.communicate()
    run = only_run(tmp_path)
    (run / "stop.direct").touch()
    train(tmp_path, data_root, "train.checkpoint_every=1000")
    assert losses(run) == losses(whole)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("joint/label")] == [line["step"] for line in losses(whole)]


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(whole: Path, tmp_path: Path, data_root: str) -> None:
    process = start(tmp_path, data_root)
    until(lambda: list(tmp_path.glob("dann/*/checkpoints/step-000020")), process)
    process.kill()
    process.communicate()
    run = only_run(tmp_path)
    newest = max((run / "checkpoints").glob("step-*"))
    content = bytearray((newest / "method.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "method.safetensors").write_bytes(content)
    errors = train(tmp_path, data_root)
    assert f"{newest.name}: method.safetensors differs from what was written; falling back" in errors
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_second_trainer_of_a_run_is_refused(tmp_path: Path, data_root: str) -> None:
    process = start(tmp_path, data_root, "train.steps=100000")
    until(lambda: list(tmp_path.glob("dann/*/metrics.jsonl")), process)
    errors = train(tmp_path, data_root, "train.steps=100000", code=2)
    assert f"process {process.pid} on " in errors
    process.terminate()
    process.communicate(timeout=60)
    assert RunDirectory(only_run(tmp_path)).state() == "stopped", "the one that was there is left in peace"


def test_a_loss_that_is_not_finite_fails_the_run_and_is_named(tmp_path: Path, data_root: str) -> None:
    errors = train(tmp_path, data_root, "model.lr=1e30", "train.checkpoint_every=2", code=1)
    run = only_run(tmp_path)
    assert RunDirectory(run).state() == "failed"
    assert "loss joint/" in RunDirectory(run).error()
    assert " at step " in RunDirectory(run).error()
    assert RunDirectory(run).error() in errors
    assert not list((run / "checkpoints").glob("step-*")) or RunDirectory(run).state() == "failed"
    assert not (run / "weights").exists()


def test_milestones_are_exported(tmp_path: Path, data_root: str) -> None:
    train(tmp_path, data_root, "train.export_every=16")
    assert sorted(p.name for p in (only_run(tmp_path) / "weights").iterdir()) == [
        "step-000016.safetensors",
        "step-000032.safetensors",
        "step-000040.safetensors",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.size=4"], "command line: data.size: 4 is too small for the net lenet; use 16 or more"),
        (["train.precision=fp16"], "train.precision: 'fp16' needs a GPU; choose bf16 or no"),
        (["train.steps=0"], "command line: train.steps: 0: input should be greater than 0"),
        (["model.gama=3"], "did you mean 'model.gamma'?"),
        (["train.batch_size=9", "train.micro_batches=2"], "train.batch_size: 9 is not divisible by 2"),
    ],
)
def test_invalid_input_is_refused_in_one_message(
    overrides: list[str], message: str, tmp_path: Path, data_root: str
) -> None:
    errors = train(tmp_path, data_root, *overrides, code=2)
    assert message in errors
    assert "Traceback" not in errors
    assert errors.count("error: ") == 1
    assert not list(tmp_path.glob("dann/*/checkpoints"))


def test_a_run_directory_keeps_its_config(whole: Path, data_root: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "trainer/main.py", str(whole), "train.steps=50"]
    refused = warm.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert refused.returncode == 2
    assert "a run directory keeps its config" in refused.stderr
