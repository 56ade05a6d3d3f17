"""A short run of every method that makes images improves its own metric."""

import os
import sys
from pathlib import Path

import pytest

from eval import main
from eval.features import classifier
from tests import warm
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[1]
LONG = pytest.mark.skipif("TURNOUT_TEST_LONG" not in os.environ, reason="trains for minutes: `make soak` runs it")
FIRST = 10  # step of the weights to compare with: all but untrained


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the classifier for a fifth of its steps, which is enough to recognise digits."""
    monkeypatch.setattr(classifier, "STEPS", 100)
    monkeypatch.setattr(classifier, "EPOCHS", 0)


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
    first, last = (row["metrics"] for row in RunDirectory(path).evaluation()["history"])
    print(settings[0], first[metric], last[metric], last[metric] / first[metric])
    assert last[metric] < share * first[metric]


@LONG  # every day tests/models/test_diffusion.py has a smaller one learn
def test_a_short_run_of_diffusion_samples_the_requested_digits(tmp_path: Path, data_root: str) -> None:
    """The classifier recognises more than .35 of 1,000 samples; chance gives .1."""
    model = "model={predicts: velocity, width: 16, lr: 0.004, sampling_steps: 10, eta: 1.0, guidance: 4.0}"
    train = "train={steps: 800, batch_size: 32}"
    path = trained(tmp_path, "method=ddpm", model, train, f"data.root={data_root}")
    assert main.main([str(path), "--metrics", "class_accuracy"]) == 0
    metrics = RunDirectory(path).evaluation()["metrics"]
    print(metrics)
    assert metrics["class_accuracy"] > 0.35


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        pytest.param(["method=vae"], 1200, marks=LONG),  # of the published size
        pytest.param(["method=vae_wide", "model={width: 16, latent: 512, lr: 0.004}"], 800, marks=LONG),
    ],
)
def test_a_small_kl_weight_reconstructs_images(method: list[str], steps: int, tmp_path: Path, data_root: str) -> None:
    """At a KL weight of 1e-5 the mean squared error of test images in [-1, 1] is below .03."""
    settings = ["model.kl_weight=1e-5", "data.size=64", f"train={{steps: {steps}, batch_size: 64}}"]
    path = trained(tmp_path, *method, *settings, f"data.root={data_root}")
    assert main.main([str(path), "--metrics", "reconstruction"]) == 0
    assert RunDirectory(path).evaluation()["metrics"]["reconstruction_mse"] < 0.03


def test_the_kl_weight_trades_divergence_for_reconstruction_error(tmp_path: Path, data_root: str) -> None:
    """From a KL weight of 1e-5 to .1 the divergence falls to a tenth, and the error rises by a third."""
    measurements = []
    for weight in ("1e-5", "0.1"):
        train = "train={steps: 200, batch_size: 32, log_every: 100}"
        settings = ["method=vae", f"model={{width: 8, latent: 32, kl_weight: {weight}}}", train]
        path = trained(tmp_path / weight, *settings, f"data.root={data_root}")
        assert main.main([str(path), "--metrics", "reconstruction"]) == 0
        error, kl = (
            RunDirectory(path).evaluation()["metrics"]["reconstruction_mse"],
            RunDirectory(path).metrics()[-1]["vae/kl"],
        )
        print(weight, error, kl)
        measurements.append((error, kl))
    (low_error, high_kl), (high_error, low_kl) = measurements
    assert low_kl < 0.1 * high_kl
    assert high_error > 1.33 * low_error


def trained(folder: Path, *words: str) -> Path:
    """Train a method on the bundled digits over photographs; return its run directory."""
    folder.mkdir(exist_ok=True)
    (folder / "short.yaml").write_text("data: {dataset: mnistm5k}\ntrain: {checkpoint_every: 10000}\n")
    command = [sys.executable, "trainer/main.py", str(folder / "short.yaml"), *words, "--runs", str(folder)]
    ran = warm.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    (path,) = (folder / "short").iterdir()
    return path
