"""What is shown while a trial trains: learning rates, norms, ramps and memory; previews, which change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.tracking.state import determine_status
from models.base import Method, Update
from tests.models.test_methods import build_trainer
from trainer.main import main
from trainer.preview import information
from trainer.runs.directory import RunDirectory

DANN = "method: dann\ndata: {source: mnist5k, target: mnistm5k}\n"
VAE = "method: vae\nmodel: {width: 4, latent: 8}\ndata: {dataset: digits}\n"
DDPM = "method: ddpm\nmodel: {width: 8, timesteps: 20}\ndata: {dataset: mnistm5k}\n"


def train(folder: Path, text: str, data_root: str, *settings: str) -> RunDirectory:
    """Train 12 steps of a sweep file; return the run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(text)
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests of this process may have another precision
    common = ["train.steps=12", "train.batch_size=8", "train.log_every=5", f"data.root={data_root}"]
    assert main([str(folder / "tiny.yaml"), *common, *settings, "--runs", str(folder / "logs")]) == 0
    return RunDirectory(next((folder / "logs" / "tiny").glob("*-*")))


def events(run: RunDirectory) -> EventAccumulator:
    accumulator = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def losses(run: RunDirectory) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in run.metrics()]


def scalars(run: RunDirectory, name: str) -> dict[int, float]:
    return {event.step: event.value for event in events(run).Scalars(name)}


@pytest.mark.parametrize("text", [DANN, VAE, DDPM])
def test_previews_do_not_change_the_training_at_all(tmp_path: Path, data_root: str, text: str) -> None:
    without = train(tmp_path / "without", text, data_root)
    previewed = train(tmp_path / "with", text, data_root, "train.preview_every=3")
    assert previewed.name == without.name  # the same identity
    first, second = (load_file(run.path / "weights/step-000012.safetensors") for run in (without, previewed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(without) == losses(previewed)
    assert "preview_every" not in without.config_file.read_text()


def test_validation_metrics_are_those_of_the_evaluation(tmp_path: Path, data_root: str) -> None:
    from eval.metrics import accuracy
    from eval.trial import open_trial

    run = train(tmp_path, DANN, data_root, "train.preview_every=6", "train.export_every=6")
    assert set(scalars(run, "validation/accuracy/source")) == {6, 12}
    trial = open_trial(run.path, folder=tmp_path)
    images = trial.arrays("target", "validation").images
    chosen = np.linspace(0, len(images) - 1, min(1000, len(images))).astype(int)
    expected = information(trial.apply(trial.capability("predict", "accuracy"), images[chosen]))
    assert scalars(run, "validation/information/target")[12] == pytest.approx(expected, abs=1e-5)
    true, logits = accuracy.predictions(trial, "source", "validation")
    chosen = np.linspace(0, len(true) - 1, min(1000, len(true))).astype(int)
    share = float((true == logits.argmax(1))[chosen].mean())
    assert scalars(run, "validation/accuracy/source")[12] == pytest.approx(share, abs=2e-3)
    assert "validation/accuracy/target" not in events(run).Tags()["scalars"]
    assert determine_status(run).metrics["validation/accuracy/source"] == pytest.approx(share, abs=2e-3)


def test_previews_never_read_a_test_split(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []

    def load(path: str, *arguments: object, **options: object) -> np.ndarray:
        splits.append(Path(path).name)
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    real = np.load
    monkeypatch.setattr(np, "load", load)
    train(tmp_path, DANN, data_root, "train.preview_every=6")
    assert "validation_images.npy" in splits
    assert not [name for name in splits if name.startswith("test")]


@pytest.mark.parametrize("text", [VAE, DDPM])
def test_samples_of_the_same_noise_are_drawn_at_every_preview(tmp_path: Path, data_root: str, text: str) -> None:
    run = train(tmp_path, text, data_root, "train.preview_every=5")
    assert [event.step for event in events(run).Images("samples")] == [5, 10, 12]


def test_rates_norms_ramps_and_memory_are_in_tensorboard_and_status(tmp_path: Path, data_root: str) -> None:
    run = train(tmp_path, DANN, data_root)
    steps = {5, 10, 12}
    for name in ("optim/gradient_norm/joint", "speed/memory_gib", "speed/steps_per_second"):
        values = scalars(run, name)
        assert set(values) == steps
        assert min(values.values()) > 0
    for step, value in scalars(run, "optim/lr/joint").items():
        p = (step - 1) / 12
        assert value == pytest.approx(0.01 * (1 + 10 * p) ** -0.75)
        assert scalars(run, "optim/ramp/lambda")[step] == pytest.approx(2 / (1 + np.exp(-10 * p)) - 1)
    assert set(json.loads((run.path / "status.json").read_text())["monitor"]) == {
        *("lr/joint", "gradient_norm/joint", "ramp/lambda", "steps_per_second", "memory_gib")
    }
    assert not any("norm" in key for line in run.metrics() for key in line)  # metrics.jsonl stays as it was


class TwoUpdates(Method):
    """Two updates of one parameter each, with known gradients."""

    reads = ("images",)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)

    def updates(self) -> list[Update]:
        sgd = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
        return [
            Update("a", ("a",), lambda batch, progress: {"loss": 3 * self.a.weight.sum()}, sgd),
            Update("b", ("b",), lambda batch, progress: {"loss": (4 + progress) * self.b.weight.sum()}, sgd, every=4),
        ]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradient_norms_are_of_the_last_step_of_each_update(clip: float) -> None:
    trainer = build_trainer(TwoUpdates(), clip=clip, log_every=7, steps=10)
    for step in trainer.fit([{"images": torch.zeros(2, 1)}] * 7):
        if step == 7:
            norms = {name: value for name, value in trainer.monitor().items() if name.startswith("gradient")}
            assert norms == pytest.approx({"gradient_norm/a": 3.0, "gradient_norm/b": 4.4})
