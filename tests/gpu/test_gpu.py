"""What only a GPU can show, on one of them, without a network or a data set: `make gpu`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.benchmarks import steps
from trainer.config.sweep import load_trials
from trainer.data import batches
from trainer.data.batches import Batches, prefetch
from trainer.data.cache import Arrays
from trainer.runs import checkpoints
from trainer.runs.costs import read_costs
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories

ROOT = Path(__file__).parents[2]
STEPS, STOP = 40, 13

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two domains of images whose brightness tells their class, and a data root."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for domain, contrast in (("source", 1.0), ("target", 0.7)):
        labels = np.arange(600) % 3
        images = contrast * (60 * labels[:, None, None, None] + random.integers(80, size=(600, 28, 28, 3)))
        np.savez(folder / f"{domain}.npz", images=images.astype(np.uint8), labels=labels)
    names = {domain: f"npz:{folder / domain}.npz" for domain in ("source", "target")}
    return names | {"root": str(folder / "root")}


Create = Callable[..., list[RunDirectory]]


@pytest.fixture
def create(tmp_path: Path, data: dict[str, Any]) -> Create:
    """Return a function that creates the run directories of some seeds in a sweep of its own."""

    def create_runs(name: str, seeds: int = 1, **train: Any) -> list[RunDirectory]:
        settings = {"steps": STEPS, "batch_size": 32, "log_every": 5, "checkpoint_every": 10, **train}
        content = {"method": "dann", "data": data, "train": settings, "eval": {"metrics": ["accuracy"]}}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content | {"grid": {"train.seed": [*range(seeds)]}}))
        return [RunDirectory(path) for path in create_run_directories(tmp_path / "logs" / name, load_trials(file, []))]

    return create_runs


def run(program: str, *words: str, text: str = "") -> str:
    """Run a program of the checkout; return what it printed to stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, program, *words], cwd=ROOT, env=environment, input=text, text=True, capture_output=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stderr


def train(trial: RunDirectory, *words: str) -> str:
    return run("trainer/main.py", str(trial.path), *words)


def losses(trial: RunDirectory) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key not in ("time", "rate")} for line in trial.metrics()]


def results(trial: RunDirectory) -> tuple[list[dict[str, float]], bytes]:
    return losses(trial), trial.exported_weights()[STEPS].read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "fused": True, "cudnn_benchmark": True},
        {"precision": "fp16", "tf32": True},
        {"compile": True, "async_checkpoints": True},
    ],
    ids=str,
)
def test_options_train_on_the_gpu_and_resume(options: dict[str, Any], create: Create) -> None:
    (trial,) = create("option", **options)
    assert ", cuda, " in train(trial, "--until", str(STOP))
    state = json.loads((checkpoints.steps(trial)[0] / "trainer.json").read_text())
    assert state["step"] == STOP
    assert bool(state["scaler"]) == (options.get("precision") == "fp16")
    assert f"resuming from step {STOP}" in train(trial)
    assert trial.state() == "done"
    assert losses(trial)[-1]["joint/label"] < losses(trial)[0]["joint/label"]
    assert all(torch.isfinite(value).all() for value in load_file(trial.exported_weights()[STEPS]).values())
    costs = read_costs(trial)
    assert (costs["attempts"], trial.status()["costs"]["steps"]) == (2, STEPS)
    assert costs["device_memory_gib"] > 0


def test_a_deterministic_training_stops_and_resumes_bit_for_bit(create: Create) -> None:
    (whole,) = create("whole", deterministic=True)
    (stopped,) = create("stopped", deterministic=True, async_checkpoints=True)
    train(whole)
    train(stopped, "--until", str(STOP))
    train(stopped)
    assert results(stopped) == results(whole)


def test_batches_on_the_device_and_from_pinned_memory_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(300, 28, 28, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    arrays = {"": Arrays(images, random.integers(3, size=300))}

    def read(device: str) -> tuple[bool, list[dict[str, torch.Tensor]]]:
        source = Batches(arrays, ("images", "labels"), 64, 0, 0, 1, torch.device(device), balanced=True, flip=True)
        return source.resident, [{k: v.cpu() for k, v in batch.items()} for batch in prefetch(source, 0, 12)]

    (on_device, resident), (_, expected) = read("cuda"), read("cpu")
    monkeypatch.setattr(batches, "SHARE_OF_MEMORY", 0.0)
    from_host, pinned = read("cuda")
    assert (on_device, from_host) == (True, False)
    for batch, other, reference in zip(resident, pinned, expected, strict=True):
        for key, value in reference.items():
            torch.testing.assert_close(batch[key], value)
            torch.testing.assert_close(other[key], value)


def test_trials_that_share_the_gpu_are_those_that_ran_alone(create: Create) -> None:
    alone = create("alone", 2, deterministic=True)
    for trial in alone:
        train(trial)
    for mps in ("no", "auto"):
        packed = create(f"packed_{mps}", 2, deterministic=True)
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        work = {
            "sweep": str(packed[0].path.parent),
            "tasks": [{"stage": "train", "path": str(trial.path), "evaluate": True} for trial in packed],
            "slots": 2, "devices": [device, device], "mps": mps,
        }  # fmt: skip
        log = run("jobs/worker.py", text=json.dumps(work))
        assert [results(trial) for trial in packed] == [results(trial) for trial in alone]
        assert all(0 < trial.evaluation()["metrics"]["accuracy/target"] <= 1 for trial in packed)
        (way,) = (line for line in log.splitlines() if "share the GPU" in line)
        assert "time slicing" in way or (mps == "auto" and "through MPS" in way)
        print(way)


def test_an_evaluation_on_the_gpu_is_that_on_the_cpu(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,) = create("evaluated")
    train(trial)
    run("eval/main.py", str(trial.path))
    on_gpu = trial.evaluation()["metrics"]
    trial.evaluation_file.unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run("eval/main.py", str(trial.path))
    assert trial.evaluation()["metrics"] == pytest.approx(on_gpu, abs=0.02)


def test_steps_of_every_method_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """The table, which is shown; the time allowed leaves the whole of `make gpu` at 8 minutes."""
    with capsys.disabled():
        print()
        steps.main(["--rounds", "1", "--seconds", "120", "--options", "fp32", "bf16", "compile"])
