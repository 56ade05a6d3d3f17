"""Turnout from a notebook and as one command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import models
import turnout
from models.base import DataSpec
from trainer.config.resolve import resolve
from trainer.data.pixels import to_signed
from trainer.errors import ConfigError

ROOT = Path(turnout.__file__).parent


def save_trial(folder: Path, method: str) -> Path:
    """Write a finished trial of a method on digits, 8 pixels in grey, with random weights."""
    train = {"steps": 10, "seed": 1}
    config = resolve({"name": "s", "method": method, "data": {"dataset": "digits"}, "train": train}, "test")
    run = folder / method
    (run / "weights").mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    network = models.load(method)(DataSpec(*config.data.shape()), **config.model_arguments())
    state = {name: 10 * value if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file(state, run / "weights" / "step-000010.safetensors")
    (run / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "loss": 1.0}\n')
    (run / "done").write_text("{}")
    return run


def test_a_trained_classifier_predicts_arrays_and_pictures(tmp_path: Path) -> None:
    trial = turnout.open_trial(save_trial(tmp_path, "classifier"))
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    logits = trial.predict(images)
    with torch.inference_mode():
        expected = trial.method.predict(to_signed(torch.from_numpy(images)).to(trial.device))  # type: ignore[operator]
    np.testing.assert_allclose(logits, expected.cpu().numpy(), atol=1e-5)
    np.testing.assert_array_equal(trial.predict([Image.fromarray(image[0]) for image in images]), logits)
    assert trial.predict([Image.new("RGB", (40, 30))]).shape == (1, 10)
    for wrong in (images[:, :, :4], images.astype(np.float32), images[:0]):
        with pytest.raises(ConfigError, match=r"give uint8 \[n, 1, 8, 8\]"):
            trial.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sample"):
        trial.sample(1)


def test_a_trained_generator_draws_the_same_samples_for_a_seed(tmp_path: Path) -> None:
    trial = turnout.open_trial(save_trial(tmp_path, "vae"))
    samples = trial.sample(5)
    assert (samples.shape, samples.dtype) == ((5, 1, 8, 8), np.uint8)
    np.testing.assert_array_equal(trial.sample(5), samples)
    assert (trial.sample(5, seed=1) != samples).any()


def test_results_are_rows_of_settings_metrics_and_curves(tmp_path: Path) -> None:
    run = save_trial(tmp_path, "classifier")
    (run / "eval").mkdir()
    (run / "eval" / "metrics.json").write_text('{"step": 10, "metrics": {"accuracy": 0.5}}')
    (row,) = turnout.results(tmp_path)
    expected: dict[str, Any] = {"trial": "classifier", "state": "done", "method": "classifier", "train.seed": 1}
    assert row.items() >= {**expected, "accuracy": 0.5, "error": ""}.items()
    assert [values.tolist() for values in row["curves"]["loss"]] == [[5, 10], [2.0, 1.0]]


def test_submit_takes_overrides_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "sweeps" / "dann.yaml")
    assert turnout.submit(file, "train.seed=[0,1]", cluster="local", dry_run=True, yes=False, runs=str(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "10 trials" in output
    assert not list(tmp_path.iterdir())
    assert turnout.submit(file, "model.gama=1", cluster="local", dry_run=True) == 2
    assert "gamma" in capsys.readouterr().err


def test_the_command_runs_what_the_scripts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turnout", *words])
        code = turnout.main()
        return code, *capsys.readouterr()

    run_directory = save_trial(tmp_path, "classifier")
    code, output, _ = run("status", str(tmp_path))
    assert (code, run_directory.name in output) == (0, True)
    assert run("--help")[0] == run()[0] == 0
    code, _, error = run("stauts")
    assert code == 2
    assert "stauts: no such command" in error
    for module in turnout.COMMANDS.values():
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_modules_of_the_same_names_in_the_current_folder_do_not_hide_ours(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("raise RuntimeError")
    (tmp_path / "eval").mkdir()
    code = f"import sys; sys.path.append({str(ROOT)!r}); import turnout, models, eval; print(models.FOLDER)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "models"
