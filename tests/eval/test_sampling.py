"""Samples of a diffusion model from the command line, and their evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.progress import Progress
from safetensors.torch import load_file, save_file

import models
from eval import figures, main
from eval.metrics import class_accuracy, diffusion, sampling_calls
from eval.sampling_options import parse_options
from eval.trial import open_trial
from models.base import DataSpec
from tests.eval.test_generative import arrays, failure, found, pngs, root  # noqa: F401 - root is a fixture
from trainer.config.resolve import resolve
from trainer.errors import ConfigError
from trainer.seeds import seed_torch

MODEL = {"width": 8, "timesteps": 12, "sampling_steps": 4}


@pytest.fixture
def make(tmp_path: Path, root: Path) -> Callable[..., Path]:  # noqa: F811
    """Return a function that creates a finished trial with random weights."""

    def run(method: str = "ddpm", name: str = "a", **model: Any) -> Path:
        document = {"name": "s", "method": method, "model": model, "data": {"dataset": "tiny", "root": str(root)}}
        config = resolve({**document, "train": {"steps": 10, "seed": 3}}, "test")
        path = tmp_path / "sweep" / name
        (path / "weights").mkdir(parents=True)
        (path / "config.yaml").write_text(config.to_yaml())
        seed_torch(1, "weights")
        state = models.load(method)(DataSpec(*config.data.shape()), **config.model_arguments()).state_dict()
        save_file(state, path / "weights" / "step-000010.safetensors")
        return path

    return run


def trained(run: Path) -> Any:
    method = models.load("ddpm")(DataSpec(1, 8, 2), **MODEL).eval()
    method.load_state_dict(load_file(run / "weights" / "step-000010.safetensors"))
    return method


def export(run: Path, out: Path, *words: str) -> int:
    return main.main([str(run), "--samples-per-class", "3", "--out", str(out), *words])


def test_sampling_options_reach_the_method(make: Callable[..., Path], tmp_path: Path) -> None:
    run, how = make(**MODEL), {"steps": 6, "eta": 0.5, "guidance": 1.0, "batch": 2}
    assert export(run, tmp_path / "out", "--with", *(f"{key}={value}" for key, value in how.items())) == 0
    method = trained(run)
    seed_torch(3, "samples", 0)
    with torch.inference_mode():
        images = method.sample(6, torch.tensor([0, 0, 0, 1, 1, 1]), **how)
    expected = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()
    assert np.abs(pngs(tmp_path / "out").astype(int) - expected).max() <= 1, "but for rounding"
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][::3] == ["0_001.png", "1_001.png"]


def test_a_terminal_shows_the_progress_of_sampling(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(**MODEL)
    assert main.main([str(run), "--metrics", "class_accuracy"]) == 0
    assert "%" not in capsys.readouterr().err, "a file sees none of it"
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    monkeypatch.setattr(Progress, "update", seen := Updates())
    assert main.main([str(run), "--metrics", "class_accuracy", "--force"]) == 0
    assert "class_accuracy: samples" in capsys.readouterr().err
    assert seen.completed == sorted(seen.completed)
    assert {0, 25, 50, 75, 100, 200} < set(seen.completed), "by the steps of a chunk, too"


class Updates:
    """Replace the method that moves a progress bar, and record where it is moved."""

    def __init__(self) -> None:
        self.completed: list[float] = []

    def __call__(self, task: int, completed: float) -> None:
        self.completed.append(completed)


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_initial_noise_is_read_from_a_file(make: Callable[..., Path], tmp_path: Path, suffix: str) -> None:
    run, file = make(**MODEL), tmp_path / f"start.{suffix}"
    noise = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise[3:] = noise[:3]
    if suffix == "npy":
        np.save(file, noise.numpy())
    else:
        torch.save(noise, file)
    images = []
    for number in ("1", "2"):
        assert export(run, tmp_path / number, "--with", f"noise={file}", "--seed", number) == 0
        images.append(pngs(tmp_path / number))
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0][:3] != images[0][3:]).any(), "the class differs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=13"], "steps: 13 is not 1 to 12"),
        (["guidance=-1"], "--with guidance: -1"),
        (["eta=2"], "--with eta: 2"),
        (["step=3"], "did you mean 'steps'"),
        (["steps=some"], "--with steps: 'some'"),
        (["watch=1"], "--with watch: unknown key"),
        (["noise=absent.npy"], "absent.npy: cannot be read"),
        (["noise=text.npy"], "text.npy: cannot be read"),
        (["noise=five.npy"], "noise: has 5 rows for 6 images"),
        (["noise=wide.npy"], "noise: has the shape (6, 1, 9, 9); 6 images start from (6, 1, 8, 8)"),
        (["noise=nan.npy"], "nan.npy: must hold one array of finite numbers"),
        (["precision=fp8"], "--with precision: 'fp8'"),
    ],
)
def test_invalid_sampling_options_are_refused_and_write_nothing(
    make: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("no array")
    for name, shape in (("five", (5, 1, 8, 8)), ("wide", (6, 1, 9, 9)), ("nan", (6, 1, 8, 8))):
        np.save(f"{name}.npy", np.full(shape, np.nan if name == "nan" else 0.0))
    assert export(make(**MODEL), Path("out"), "--with", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_sampling_options_of_a_method_without_any_are_refused() -> None:
    with pytest.raises(ConfigError, match="vae has no sampling options"):
        parse_options("vae", models.load("vae").sample, ["steps=3"])  # type: ignore[attr-defined]


def test_weights_with_other_timesteps_are_refused(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make(**MODEL), make(name="b", **{**MODEL, "timesteps": 20})
    weights = "weights/step-000010.safetensors"
    (run / weights).write_bytes((other / weights).read_bytes())
    assert export(run, tmp_path / "out") == 2
    assert "trained at 20 timesteps, not 12; set model.timesteps: 20" in capsys.readouterr().err


def test_class_accuracy_matches_a_manual_count(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_accuracy, "PER_CLASS", 20)
    run, titles, draw = make(**MODEL), list[str](), figures.confusion

    def record_title(counts: Any, title: str, classes: Any) -> Any:
        titles.append(title)
        return draw(counts, title, classes)

    monkeypatch.setattr(figures, "confusion", record_title)
    assert main.main([str(run), "--metrics", "class_accuracy"]) == 0
    metrics, how = found(run)["metrics"], found(run)["provenance"]["class_accuracy"]
    counts = np.load(run / "eval" / "class_accuracy.npz")["counts"]
    assert counts.sum(1).tolist() == [20, 20]
    assert metrics["class_accuracy"] == counts.trace() / 40
    assert how["by class"] == {"0": counts[0, 0] / 20, "1": counts[1, 1] / 20}
    assert metrics["class_accuracy/of_test_images"] == how["test accuracy"]
    (title,) = titles
    assert f"class accuracy {counts.trace() / 40:.3f} of 40 samples" in title
    assert f"(test images: {how['test accuracy']:.3f})" in title
    assert metrics["seconds_per_1000_samples"] > 0
    low, high = found(run)["intervals"]["class_accuracy"]
    assert 0 <= low <= metrics["class_accuracy"] <= high <= 1


def test_copied_test_images_are_judged(make: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Test images of the requested classes as samples are recognised like the test images themselves."""
    run, test = make(**MODEL), arrays(root, "test")
    monkeypatch.setattr(class_accuracy, "PER_CLASS", 4)
    images = torch.from_numpy(np.array(test.images)).float() / 127.5 - 1
    truth = torch.from_numpy(np.array(test.labels))

    def copied(self: Any, n: int, labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([images[truth == label][0] for label in labels])

    monkeypatch.setattr(models.load("ddpm"), "sample", copied)
    assert main.main([str(run), "--metrics", "class_accuracy"]) == 0
    assert found(run)["metrics"]["class_accuracy"] == found(run)["metrics"]["class_accuracy/of_test_images"] == 1


def test_diffusion_figures_are_drawn_from_stored_and_from_own_noise(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(**MODEL)
    assert main.main([str(run), "--metrics", "diffusion"]) == 0
    drawn = {path.name for path in (run / "eval").glob("*.png")}
    assert drawn == {"reverse.png", "sampling_steps.png", "eta.png", "interpolation.png"}
    np.save(tmp_path / "faces.npy", np.random.default_rng(0).standard_normal((2, 1, 8, 8)))
    command = [str(run), "--noise", str(tmp_path / "faces.npy"), "--out", str(tmp_path / "figures")]
    assert diffusion.main(command) == 0
    for name in ("eta.png", "interpolation.png"):
        with Image.open(tmp_path / "figures" / name) as image, Image.open(run / "eval" / name) as of_four:
            assert image.height < of_four.height
    with Image.open(run / "eval" / "interpolation.png") as of_four:
        height = of_four.height
    capsys.readouterr()
    torch.save(torch.randn(1, 1, 8, 8), tmp_path / "third.pt")
    assert diffusion.main([*command[:2], str(tmp_path / "third.pt"), *command[2:]]) == 0
    with Image.open(tmp_path / "figures" / "interpolation.png") as of_three:
        assert of_three.height == height, "two pairs, as of four"
    for content in (np.zeros((2, 3, 8, 8)), np.full((2, 1, 8, 8), np.nan)):
        np.save(tmp_path / "faces.npy", content)
        assert diffusion.main(command) == 2
        assert capsys.readouterr().err.startswith(f"error: --noise {tmp_path}/faces.npy: ")


def test_the_reverse_process_is_shown_at_the_nearest_sampled_times(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, mosaic = list[tuple[str, Any]](), figures.mosaic

    def record_title(images: Any, rows: Any = (), columns: Any = (), title: str = "") -> Any:
        titles.append((title, columns))
        return mosaic(images, rows, columns, title)

    monkeypatch.setattr(figures, "mosaic", record_title)
    run = make(**MODEL)  # of 12 times it samples 12, 9, 6 and 3
    document = yaml.safe_load((run / "config.yaml").read_text()) | {"eval": {"diffusion": {"times": [12, 8, 1, 0]}}}
    (run / "config.yaml").write_text(yaml.safe_dump(document))
    assert main.main([str(run), "--metrics", "diffusion"]) == 0
    times = found(run)["provenance"]["diffusion"]["times"]
    title, columns = titles[0]
    assert columns == [str(time) for time in times]
    assert title.endswith("the sampled times nearest to 12, 8, 1, 0")
    assert times == [12, 9, 0, 0]


def test_metrics_that_need_other_capabilities_are_refused(make: Callable[..., Path]) -> None:
    unconditional = make("ddpm_unconditional", **MODEL)
    assert main.main([str(unconditional), "--metrics", "class_accuracy", "diffusion"]) == 2
    assert "ddpm_unconditional learns from no labels" in failure(unconditional)
    assert {path.name for path in (unconditional / "eval").glob("*.png")} >= {"reverse.png", "interpolation.png"}
    other = make("vae", name="b", width=4, latent=8)
    assert main.main([str(other), "--metrics", "diffusion"]) == 2
    assert "diffusion needs sample(steps, eta, noise, watch), which vae does not have" in failure(other)


def test_quality_is_measured_at_each_number_of_network_calls(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of Heun have two calls but the last, so 6 calls allow 3 steps; DDIM has one call a step."""
    monkeypatch.setattr(sampling_calls, "CALLS", (3, 6))
    monkeypatch.setattr(sampling_calls, "PER_CLASS", 20)
    runs = [str(make("edm", "edm", width=8)), str(make("ddpm", "ddpm", width=8, timesteps=12))]
    assert main.main([*runs, "--metrics", "sampling_calls"]) == 0
    counts = {}
    for name in ("edm", "ddpm"):
        record = found(tmp_path / "sweep" / name)
        facts = [record["provenance"][f"sampling_calls/{calls}_calls"] for calls in (3, 6)]
        counts[name] = [(fact["steps"], fact["calls"], fact["n"]) for fact in facts]
        assert {key for key in record["metrics"] if key.endswith("/6_calls")} == {
            "class_accuracy/6_calls", "fid_classifier/6_calls", "seconds_per_1000_samples/6_calls"
        }  # fmt: skip
        assert all(np.isfinite(value) for value in record["metrics"].values())
    assert counts == {"edm": [(2, 3, 40), (3, 5, 40)], "ddpm": [(3, 3, 40), (6, 6, 40)]}


def test_calls_are_refused_where_a_method_samples_at_once(make: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"sampling_calls needs sample\(steps\), which acgan does not have"):
        sampling_calls.evaluate(open_trial(make("acgan", width=8)))
