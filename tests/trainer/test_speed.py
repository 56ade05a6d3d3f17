"""Options for speed: none is on by default; checkpoints that a thread writes are the same."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import warm
from tests.models.test_methods import build_trainer
from tests.processes import batches, build
from trainer.config.schema import Train
from trainer.loop import spare_compiler_import, take_step
from trainer.runs import checkpoints
from trainer.runs.directory import RunDirectory
from trainer.speed import fuse, set_options

ROOT = Path(__file__).parents[2]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_networks_are_compiled_in_place_unless_they_are_differentiated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that leaves functions as they are: tests/gpu compiles."""
    calls = []

    def compile_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(function.__self__)  # type: ignore[attr-defined]
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    eager, compiled = (build_trainer(build("wgan_gp", independent=False), compile=on) for on in (False, True))
    for trainer in (eager, compiled):
        assert len([*trainer.fit(islice(batches("wgan_gp", 0, 1), 2))]) == 2
    assert set(calls) == {compiled.method.generator}
    assert [*compiled.method.state_dict()] == [*eager.method.state_dict()]
    for name, value in eager.method.state_dict().items():
        assert torch.equal(compiled.method.state_dict()[name], value)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adamax])
def test_a_fused_step_is_that_of_the_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    spare_compiler_import()
    weights = [nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    plain, fused = (optimizer([weight], lr=0.1) for weight in weights)  # type: ignore[call-arg]
    fuse(fused)
    assert fused.param_groups[0].get("fused", False) == (optimizer is not torch.optim.Adamax)
    for _ in range(3):
        for weight, step in zip(weights, (plain, fused), strict=True):
            (weight**3).sum().backward()
            take_step(step)
            step.zero_grad()
    torch.testing.assert_close(weights[1], weights[0])
    assert not torch.equal(weights[0], torch.linspace(-1, 1, 7))


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that calls set_options and returns what is set then; afterwards nothing is."""

    def read() -> dict[str, Any]:
        return {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolution": torch.backends.cudnn.allow_tf32,
            "benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cache": os.environ.get("TORCHINDUCTOR_CACHE_DIR"),
        }

    for name in ("TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    before = read()

    def set_and_read(**settings: Any) -> dict[str, Any]:
        set_options(Train(**settings), Path("compiled"))
        return {name: value for name, value in read().items() if value != before[name]}

    yield set_and_read
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["matmul"], before["convolution"]
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.set_deterministic_debug_mode("error" if before["deterministic"] else "default")


def test_options_are_set_where_they_are_asked_for(options: Any) -> None:
    assert options() == {}
    assert options(tf32=True) == {"matmul": True}  # torch's default has it in convolutions
    assert options(tf32=False) == {"convolution": False}
    assert options(compile=True) == {"convolution": False, "cache": "compiled"}
    assert options(deterministic=True) == {"convolution": False, "cache": "compiled", "deterministic": True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(ValueError, match="exclude each other"):
        options(deterministic=True, cudnn_benchmark=True)


def test_a_later_step_does_not_reach_a_copied_state(tmp_path: Path) -> None:
    trainer = build_trainer(build("dann", independent=False))
    steps = trainer.fit(batches("dann", 0, 1))
    next(steps)
    trainer.settle()
    now, copied = tmp_path / "now", tmp_path / "copied"
    for folder in (now, copied):
        folder.mkdir()
    trainer.save(now)
    write = trainer.copy_save()
    next(steps)
    trainer.settle()
    write(copied)
    assert snapshot(copied) == snapshot(now)


def test_checkpoints_are_written_one_at_a_time_and_the_last_is_waited_for() -> None:
    free, written = threading.Event(), list[int]()

    def write(number: int) -> None:
        assert free.wait(30)
        written.append(number)

    with checkpoints.Writer() as writer:
        writer.submit(lambda: write(1))
        assert not written  # the training continues
        free.set()
        writer.submit(lambda: write(2))
        assert written[0] == 1
    assert written == [1, 2]


def test_an_error_of_the_thread_ends_the_training() -> None:
    def refuse() -> None:
        raise OSError("full")

    def train(steps: int) -> None:
        with checkpoints.Writer() as writer:
            writer.submit(refuse)
            if steps:
                writer.submit(lambda: None)

    for steps in (0, 1):
        with pytest.raises(OSError, match="full"):
            train(steps)


def test_a_training_with_checkpoints_in_a_thread_stops_and_resumes_bit_for_bit(tmp_path: Path, data_root: str) -> None:
    settings = ["train.steps=24", "train.batch_size=8", "train.log_every=7", "train.checkpoint_every=5"]
    words = ["sweeps/dann.yaml", *settings, f"data.root={data_root}", "model.gamma=1"]
    program = """
import sys
from trainer.main import main
whole, stopped, *words = sys.argv[1:]
words_of = lambda runs, *more: [*words, "--runs", runs, *more]
codes = [main(words_of(whole))]
codes += [main(words_of(stopped, "train.async_checkpoints=true", *stop)) for stop in (["--until", "13"], [])]
sys.exit(max(codes))
"""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(whole), str(stopped), *words]
    warm.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    expected, run = (RunDirectory(next(folder.glob("dann/*"))) for folder in (whole, stopped))
    assert run.name == expected.name
    assert run.exported_weights()[24].read_bytes() == expected.exported_weights()[24].read_bytes()
    assert [path.name for path in checkpoints.intact(run)] == ["step-000020", "step-000015"]
    for path in checkpoints.steps(run):
        for name in ("method.safetensors", "averages.safetensors", "trainer.json"):
            assert (path / name).read_bytes() == (expected.checkpoints / path.name / name).read_bytes()
    assert "async_checkpoints: true" in run.config_file.read_text()
