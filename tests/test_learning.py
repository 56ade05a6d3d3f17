"""A short run of every method that makes images improves its own metric."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval import classifier, main
from trainer.run import Run

ROOT = Path(__file__).parents[1]
FIRST = 10  # step of the weights to compare with: all but untrained


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier that is trained for a third of its steps tells digits well enough."""
    monkeypatch.setattr(classifier, "STEPS", 300)


@pytest.mark.parametrize(
    ("settings", "steps", "metric", "share"),
    [
        (["method=dcgan", "model.width=16"], 600, "fid_classifier", 0.75),
        (
            ["method=dcgan_resize", "data.size=32", "model={width: 16, lr: 5.0e-4, discriminator_lr: 0.01}"],
            *(400, "fid_classifier", 0.85),
        ),
        (["method=wgan_gp", "model={width: 16, critic_iters: 1, lr: 0.001}"], 300, "fid_classifier", 0.5),
        (["method=acgan", "model={width: 16, lr: 5.0e-4}"], 600, "fid_classifier", 0.6),
        (["method=vae", "model={width: 16, latent: 64}"], 300, "reconstruction_mse", 0.5),
        (["method=vae_wide", "model={width: 16, lr: 0.002}"], 300, "reconstruction_mse", 0.7),
    ],
    ids=lambda value: value[0].removeprefix("method=") if isinstance(value, list) else "",
)
def test_a_short_run_improves(
    settings: list[str], steps: int, metric: str, share: float, tmp_path: Path, data_root: str
) -> None:
    """The metric falls to less than `share` of what it was after FIRST steps."""
    train = [f"train.steps={steps}", "train.batch_size=32", f"train.export_every={FIRST}"]
    path = trained(tmp_path, *settings, *train, f"data.root={data_root}")
    for weights in (path / "weights").iterdir():  # the rest of the milestones cost time
        if weights.name not in (f"step-{FIRST:06d}.safetensors", f"step-{steps:06d}.safetensors"):
            weights.unlink()
    assert main.main([str(path), "--metrics", metric.removesuffix("_mse")]) == 0
    first, last = (row["metrics"] for row in Run(path).evaluation()["history"])
    print(settings[0], first[metric], last[metric], last[metric] / first[metric])
    assert last[metric] < share * first[metric]


def test_a_short_run_of_diffusion_draws_the_digits_that_it_is_asked_for(tmp_path: Path, data_root: str) -> None:
    """Of 1,000 samples a classifier recognises more than .35, where chance gives .1."""
    model = "model={predicts: velocity, width: 16, lr: 0.004, sampling_steps: 10, eta: 1.0, guidance: 4.0}"
    train = "train={steps: 800, batch_size: 32, precision: bf16}"
    path = trained(tmp_path, "method=ddpm", model, train, f"data.root={data_root}")
    assert main.main([str(path), "--metrics", "class_accuracy"]) == 0
    metrics = Run(path).evaluation()["metrics"]
    print(metrics)
    assert metrics["class_accuracy"] > 0.35


@pytest.mark.skipif("TURNOUT_TEST_LONG" not in os.environ, reason="trains for minutes: set TURNOUT_TEST_LONG=1")
def test_a_vae_of_the_published_size_reconstructs(tmp_path: Path, data_root: str) -> None:
    """At a KL weight of 1e-5, with a mean squared error below .03 of test images in [-1, 1]."""
    settings = ["method=vae", "data.size=64", "train={steps: 1200, batch_size: 64, precision: bf16}"]
    path = trained(tmp_path, *settings, f"data.root={data_root}")
    assert main.main([str(path), "--metrics", "reconstruction"]) == 0
    assert Run(path).evaluation()["metrics"]["reconstruction_mse"] < 0.03


def trained(folder: Path, *words: str) -> Path:
    """The run directory of a method that has learned from the embedded digits over photographs."""
    (folder / "short.yaml").write_text("data: {dataset: mnistm5k}\ntrain: {checkpoint_every: 10000}\n")
    command = [sys.executable, "trainer/main.py", str(folder / "short.yaml"), *words, "--runs", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    (path,) = (folder / "short").iterdir()
    return path
