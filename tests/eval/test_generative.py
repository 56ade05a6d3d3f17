"""Evaluation of generative methods: distances to the data, reconstruction, figures, and samples as files."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from matplotlib.cbook import get_sample_data
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as reference_inception
from safetensors.torch import load, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
from eval import main, report, sampling
from eval.features import classifier, comparison, distances, inception
from eval.features.extractor import Extractor
from eval.features.moments import Gaussian
from eval.metrics import face_rate, samples, tsne
from eval.trial import TrainedTrial
from jobs import stage as staging_command
from models.base import DataSpec
from models.classifier import build_judge, enlarge
from trainer.config.resolve import resolve
from trainer.data import cache, registry
from trainer.data.cache import Arrays, stage
from trainer.data.dataset import Dataset, Findings, Form, Splits
from trainer.data.pixels import to_bytes
from trainer.errors import DataError
from trainer.runs.atomic import read_json
from trainer.seeds import seed_torch

ROOT = Path(__file__).parents[2]
METHOD = '''"""Images that a linear layer makes of noise, or of images."""

import torch
from torch import Tensor, nn

from models.base import DataSpec, Method


class Linear(Method):
    reads = {reads}
    conditional = {conditional}

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        self.shape = (data.channels, data.size, data.size)
        self.head = nn.Linear(16, data.channels * data.size**2)
        self.back = nn.Linear(data.channels * data.size**2, 16)

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        noise = torch.randn(n, 16, device=self.head.weight.device)
        if labels is not None:
            noise = noise + 3 * labels[:, None]
        return torch.tanh(self.head(noise)).unflatten(1, self.shape)

    def features(self, images: Tensor) -> Tensor:
        return self.back(images.flatten(1))

    def reconstruct(self, images: Tensor) -> Tensor:
        return torch.tanh(self.head(self.features(images))).unflatten(1, self.shape)
'''
SIZES = {"train": 70, "validation": 3, "test": 8}


@dataclass
class Squares:
    """A source of grey images of 8 pixels whose classes differ in brightness."""

    name: str
    classes: int

    def describe(self) -> Dataset:
        return Dataset(self.name, 8, 1, self.classes, "made here")

    def fetch(self, root: Path, download: bool) -> None:
        """There is nothing to fetch."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        random, splits = np.random.default_rng(0), {}
        for split, n in SIZES.items():
            labels = np.arange(n) % self.classes
            noise = random.integers(0, 100, (n, 1, 8, 8))
            splits[split] = (noise + 150 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int64)
        return splits

    def fingerprint(self) -> None:
        return None


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data root with the datasets `tiny` (grey, 8 px, two distinct classes) and `alike` (one class)."""
    for name, classes in (("tiny", 2), ("alike", 1)):
        source = Squares(name, classes)
        monkeypatch.setitem(registry.SOURCES, name, source)
        monkeypatch.setitem(registry.DATASETS, name, source.describe())
        stage(name, tmp_path / "data")
    monkeypatch.setattr(classifier, "STEPS", 20)
    return tmp_path / "data"


@pytest.fixture
def make(
    tmp_path: Path, root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that creates a finished trial of a generative method with random weights."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(models, "FOLDER", folder)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])

    def run(
        name: str, steps: tuple[int, ...] = (10,), dataset: str = "tiny", labels: bool = False, text: str = METHOD
    ) -> Path:
        method = f"linear_{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}_{name}"
        declared = text.replace("{reads}", repr(("images", "labels")[: 1 + labels])).replace(
            "{conditional}", str(labels)
        )
        (folder / f"{method}.py").write_text(declared)
        document = {"name": "s", "method": method, "data": {"dataset": dataset, "root": str(root)}}
        config = resolve({**document, "train": {"steps": max(steps), "seed": 3}}, "test")
        path = tmp_path / "sweep" / name
        (path / "weights").mkdir(parents=True)
        (path / "config.yaml").write_text(config.to_yaml())
        for step in steps:
            torch.manual_seed(step)
            state = models.load(method)(DataSpec(*config.data.shape())).state_dict()
            save_file(state, path / "weights" / f"step-{step:06d}.safetensors")
        return path

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random Inception weights, scaled so that activations keep their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torchvision.models.Inception3, "load_state_dict", lambda *_: None)
        network = reference_inception.fid_inception_v3()
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path: Path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def known(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install these weights where evaluation searches them, with their own sha256 as the expected one."""
    monkeypatch.setenv("TURNOUT_INCEPTION", str(weights))
    monkeypatch.setattr(inception, "SHA256", sha256(weights))
    return weights


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arrays(root: Path, split: str, name: str = "tiny") -> Arrays:
    return cache.load(name, split, root)


def trained_method(run: Path) -> Any:
    """Return the method with the weights of step 10, without code of eval/."""
    method = models.load(yaml.safe_load((run / "config.yaml").read_text())["method"])(DataSpec(1, 8, 2))
    method.load_state_dict(load((run / "weights" / "step-000010.safetensors").read_bytes()))
    return method


def found(run: Path) -> dict[str, Any]:
    return read_json(run / "eval" / "metrics.json")


def failure(run: Path) -> str:
    return str(read_json(run / "eval" / "failed.json").get("error", ""))


def pngs(folder: Path) -> np.ndarray:
    """Return the pictures of a folder in the order of their names, [n, h, w] or [n, h, w, 3]."""
    return np.array([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


# --- Inception


def test_fid_matches_pytorch_fid_on_the_same_images(
    make: Callable[..., Path], root: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with pytorch-fid's own reading of exported PNGs, its network, and numpy's covariance."""
    run = make("a")
    assert main.main([str(run), "--metrics", "fid"]) == 0
    assert main.main([str(run), "--samples", str(SIZES["test"]), "--out", str(tmp_path / "fake")]) == 0
    (tmp_path / "real").mkdir()
    for number, image in enumerate(arrays(root, "test").images):
        Image.fromarray(image[0]).save(tmp_path / "real" / f"{number:03d}.png")
    state = torch.load(known, weights_only=True)
    monkeypatch.setattr(reference_inception, "load_state_dict_from_url", lambda *_, **__: state)
    network = reference_inception.InceptionV3([3])
    real, fake = (
        fid_score.get_activations(sorted((tmp_path / kind).glob("*.png")), network, num_workers=0)
        for kind in ("real", "fake")
    )
    gaussians = [Gaussian(x.mean(0), np.cov(x, rowvar=False)) for x in (real, fake)]
    metrics = found(run)["metrics"]
    assert metrics["fid"] == pytest.approx(distances.frechet(*gaussians), rel=1e-6)
    assert metrics["kid"] == pytest.approx(distances.kid(*map(torch.from_numpy, (real, fake))), rel=1e-4)
    assert set(metrics) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    how = found(run)["provenance"]["fid"]
    assert (how["n_real"], how["n_fake"], how["step"], how["seed"]) == (8, 8, 10, 3)
    assert (how["sha256"], how["width"]) == (sha256(known), 2048)
    assert how["versions"]["pytorch-fid"]


def test_without_weights_fid_names_the_remedy_and_the_others_are_computed(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURNOUT_INCEPTION", str(tmp_path / "absent.pth"))
    run = make("a")
    assert main.main([str(run), "--metrics", "fid", "fid_classifier"]) == 2
    for word in (
        str(tmp_path / "absent.pth"),
        "python -m eval.features.inception",
        "TURNOUT_INCEPTION",
        "fid_classifier",
    ):
        assert word in failure(run)
    assert "Traceback" not in capsys.readouterr().err
    assert set(found(run)["metrics"]) == {
        f"{name}_classifier" for name in ("fid", "kid", "precision", "recall", "density", "coverage")
    }


def test_weights_are_searched_where_pytorch_fid_saves_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TURNOUT_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert inception.weights_path() == tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    assert inception.SHA256.startswith("6726825d"), "which torch hub has in the name of the file"


def test_weights_with_a_wrong_sha256_are_refused(
    make: Callable[..., Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_INCEPTION", str(weights))
    run = make("a")
    assert main.main([str(run), "--metrics", "fid"]) == 2
    for word in (str(weights), sha256(weights), inception.SHA256):
        assert word in failure(run)
    with pytest.raises(DataError, match="sha256"):
        inception.fetch()


def test_a_failed_download_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(url: str, path: str, hash_prefix: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TURNOUT_INCEPTION", str(tmp_path / "new" / "weights.pth"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match=r"no route to host.*TURNOUT_INCEPTION"):
        inception.fetch()


def test_few_images_cause_a_warning_and_the_spread_is_recorded(
    make: Callable[..., Path], known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "fid"]) == 0
    assert "fid: warning: 8 images are fewer than the 2,048 features" in capsys.readouterr().err
    spread = found(run)["provenance"]["fid"]["spread"]
    assert spread["fid"]["mean"] > found(run)["metrics"]["fid"], "halves of few samples are further away"
    assert spread["fid"]["std"] > 0


def test_against_compares_with_a_folder_and_writes_nothing(
    make: Callable[..., Path], root: Path, known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, val = make("a"), tmp_path / "val"
    val.mkdir()
    for number, image in enumerate(arrays(root, "test").images):
        Image.fromarray(image[0]).save(val / f"{number:03d}.png")

    def files() -> set[Path]:
        return {path for folder in (run, root, val) for path in folder.rglob("*")}

    before = files()
    command = [str(run), "--metrics", "fid", "--samples", "8"]
    assert main.main([*command, "--against", f"folder:{val}"]) == 0
    printed = capsys.readouterr().out
    assert files() == before, "neither results nor statistics, nor a cache of the folder"
    assert main.main([str(run), "--metrics", "fid"]) == 0
    fid = found(run)["metrics"]["fid"]
    assert f"8 samples of step 10 against 8 images of\nfolder:{val}" in printed
    assert f"\nfid {fid:.4f}  (std " in printed, "all images of the folder, as all of the test split"
    assert main.main([str(run), "--metrics", "fid_classifier", "--against", f"folder:{val}"]) == 0
    assert "accuracy 1.0000 on test images)" in capsys.readouterr().out
    assert main.main([*command, "--against", "folder:nowhere"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main.main([str(run), "--metrics", "samples", "--against", f"folder:{val}"]) == 2
    assert "samples is no distance from other images; give --metrics, of: fid, fid_cl" in capsys.readouterr().err


# --- the classifier, and what is kept


def test_changed_options_are_computed_again(make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a", steps=(5, 10))

    def evaluate(**options: Any) -> tuple[dict[str, float], dict[str, Any]]:
        document = yaml.safe_load((run / "config.yaml").read_text())
        document["eval"] = {"metrics": ["fid_classifier"], **options}
        (run / "config.yaml").write_text(yaml.dump(document))
        assert main.main([str(run)]) == 0
        return found(run)["metrics"], found(run)["provenance"]

    default, _ = evaluate()
    few, provenance = evaluate(samples=5, real=6)
    facts = provenance["fid_classifier"]
    assert (facts["n_fake"], facts["n_real"], facts["split"]) == (5, 6, "test")
    assert provenance["evaluations"]["fid_classifier"]["options"] == {"samples": 5, "real": 6}
    assert few["fid_classifier"] != default["fid_classifier"]
    capsys.readouterr()
    assert evaluate(samples=5, real=6)[0] == few
    assert "already evaluated" in capsys.readouterr().err
    validation, provenance = evaluate(split="validation")
    assert "fid_classifier" not in validation, "a name without a split is of test images"
    facts = provenance["validation/fid_classifier"]
    assert (facts["n_real"], facts["split"]) == (SIZES["validation"], "validation")
    assert validation["best/validation/fid_classifier"] <= validation["validation/fid_classifier"]
    assert evaluate()[0] == default
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 0
    document = yaml.safe_load((run / "config.yaml").read_text()) | {"eval": {"real": 9}}
    (run / "config.yaml").write_text(yaml.dump(document))
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 2
    assert "eval.real: 9 images, but the test split of tiny" in failure(run)


def test_the_grid_of_samples_has_the_configured_size(make: Callable[..., Path]) -> None:
    run = make("a")
    document = yaml.safe_load((run / "config.yaml").read_text()) | {"eval": {"grid": [2, 3]}}
    (run / "config.yaml").write_text(yaml.dump(document))
    assert main.main([str(run), "--metrics", "samples"]) == 0
    with np.load(run / "eval" / "samples.npz") as file:
        assert len(file["images"]) == 6


def test_class_accuracy_is_measured_at_every_milestone(make: Callable[..., Path]) -> None:
    run = make("a", steps=(5, 10), labels=True)
    assert main.main([str(run), "--metrics", "class_accuracy"]) == 0
    rows = {row["step"]: row["metrics"]["class_accuracy"] for row in found(run)["history"]}
    assert (set(rows), rows[10]) == ({5, 10}, found(run)["metrics"]["class_accuracy"])
    alone = make("b", labels=True)
    shutil.copy(run / "weights" / "step-000005.safetensors", alone / "weights" / "step-000010.safetensors")
    assert main.main([str(alone), "--metrics", "class_accuracy"]) == 0
    assert found(alone)["metrics"]["class_accuracy"] == rows[5]


def test_the_classifier_is_trained_once_and_its_accuracy_recorded(make: Callable[..., Path], root: Path) -> None:
    first, second = make("a"), make("b", steps=(20,))
    assert main.main([str(first), "--metrics", "fid_classifier"]) == 0
    (file,) = (root / "classifiers").glob("*.safetensors")
    before = file.stat().st_mtime_ns, file.read_bytes()
    statistics = {path.name: path.stat().st_mtime_ns for path in (root / "statistics").glob("*.npz")}
    assert len(statistics) == 2
    assert main.main([str(second), "--metrics", "fid_classifier"]) == 0
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    assert {path.name: path.stat().st_mtime_ns for path in (root / "statistics").glob("*.npz")} == statistics
    how = found(first)["provenance"]["fid_classifier"]
    assert how["sha256"] == sha256(file) == found(second)["provenance"]["fid_classifier"]["sha256"]
    train, test = arrays(root, "train"), arrays(root, "test")
    network = build_judge(1, 8, 2).eval()
    network.load_state_dict(load(before[1]))
    x = torch.from_numpy(np.array(test.images)) / 127.5 - 1
    assert how["test accuracy"] == (network(enlarge(x)).argmax(1).numpy() == test.labels).mean() == 1
    assert classifier.train_classifier(train, 1, 8, 2) == classifier.train_classifier(train, 1, 8, 2) == before[1]
    assert found(first)["metrics"]["fid_classifier"] != found(second)["metrics"]["fid_classifier"]
    expected = found(first)["metrics"]
    assert main.main([str(first), "--metrics", "fid_classifier", "--force"]) == 0
    assert found(first)["metrics"] == pytest.approx(expected, rel=1e-12)


def test_the_classifier_takes_images_of_any_size_and_trains_longer_on_more_images() -> None:
    for channels, size in ((1, 8), (3, 28), (3, 32), (3, 64)):
        network, images = build_judge(channels, size, 5).eval(), torch.zeros(2, channels, size, size)
        assert network(enlarge(images)).shape == (2, 5)
        assert network[:-1](enlarge(images)).shape == (2, classifier.WIDTH)
    assert [classifier.count_steps(n) for n in (70, 3500, 54_000)] == [500, 500, 2531]


def test_better_images_have_lower_distances(make: Callable[..., Path], root: Path) -> None:
    """Training images as samples are closer to the test images than noise."""
    copied = METHOD.replace(
        "return torch.tanh(self.head(noise)).unflatten(1, self.shape)",
        "return torch.from_numpy(__import__('numpy').array(DATA[:n])).float() / 127.5 - 1",
        1,
    )
    path = root / "cache" / "tiny-8x8x1-v1" / "train_images.npy"
    head, rest = copied.split("\n", 1)
    loaded = f"DATA = __import__('numpy').load({str(path)!r}).transpose(0, 3, 1, 2)"
    text = f"{head}\n{rest.replace('class Linear', loaded + chr(10) * 3 + 'class Linear', 1)}"
    good, bad = make("good", text=text), make("bad")
    assert main.main([str(good), str(bad), "--metrics", "fid_classifier", "samples"]) == 0
    better, worse = found(good)["metrics"], found(bad)["metrics"]
    assert better["fid_classifier"] < 0.5 * worse["fid_classifier"]
    assert better["kid_classifier"] < worse["kid_classifier"]
    assert better["recall_classifier"] > worse["recall_classifier"]
    learned_by_heart, noise = (np.load(run / "eval" / "samples.npz") for run in (good, bad))
    assert not learned_by_heart["mse"].any(), "copies are at no distance from the training images"
    assert learned_by_heart["nearest"].tolist() == list(range(64))
    assert noise["mse"].min() > 0


def test_a_dataset_of_one_class_has_no_classifier(make: Callable[..., Path]) -> None:
    run = make("a", dataset="alike")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 2
    assert "alike has no labels of two classes" in failure(run)


def staging(run: Path, *words: str) -> int:
    """Run jobs/stage.py on a sweep of this trial's method; return its exit code."""
    file, handler = run.parent / "x.yaml", signal.getsignal(signal.SIGTERM)
    file.write_text(f"method: {yaml.safe_load((run / 'config.yaml').read_text())['method']}\n")
    try:
        return staging_command.main([str(file), *words])
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_staging_computes_classifier_and_statistics(
    make: Callable[..., Path], root: Path, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations then compute neither again, and their results are the same as without staging."""

    def kept() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for kind in ("classifiers", "statistics")
            for path in root.glob(f"{kind}/[!.]*")
        }

    run = make("a")
    assert main.main([str(run), "--metrics", "fid", "fid_classifier"]) == 0
    expected, files = found(run)["metrics"], kept()
    assert len(files) == 5, "a classifier and, of each network's features, the statistics of two splits"
    for path in files:
        path.unlink()
    words = ("data.dataset=tiny", f"data.root={root}", "eval.metrics=[samples, class_accuracy, fid, fid_classifier]")
    assert staging(run, *words) == 0
    staged = kept()
    assert set(staged) == set(files)
    monkeypatch.setattr(classifier, "train_classifier", None)
    assert staging(run, *words) == 0
    assert main.main([str(run), "--metrics", "fid", "fid_classifier", "--force"]) == 0
    assert kept() == staged
    assert found(run)["metrics"] == pytest.approx(expected, rel=1e-12)


def test_staging_refuses_a_metric_that_the_dataset_does_not_support(
    make: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data.dataset=alike", f"data.root={root}", "eval.metrics=[fid_classifier]")
    assert staging(make("a"), *words) == 2
    said = capsys.readouterr().err
    for part in ("x.yaml: eval.metrics: fid_classifier: ", "alike has no labels of two classes", "use fid"):
        assert part in said


def test_staging_continues_after_a_failed_metric_and_reports_every_failure(
    make: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(url: str, path: str, hash_prefix: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TURNOUT_INCEPTION", str(root / "absent.pth"))
    run = make("a")
    words = (f"data.root={root}", "eval.metrics=[fid, fid_classifier]")
    assert staging(run, "data.dataset=tiny", *words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "x.yaml: eval.metrics: fid: " in said
    assert len(list((root / "statistics").glob("*-classifier-*.npz"))) == 2
    assert staging(run, "data.dataset=alike", *words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert "absent.pth" in first
    assert second.startswith("error: ")
    assert "alike has no labels of two classes" in second


@pytest.mark.parametrize("field", ["shape", "extractor sha256", "images"])
def test_reference_statistics_of_other_images_or_features_are_refused(
    make: Callable[..., Path], root: Path, field: str
) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 0
    (path,) = (root / "statistics").glob("*-test-*.npz")
    with np.load(path) as file:
        kept = dict(file)
    about = json.loads(str(kept["about"]))
    assert about["shape"] == [1, 8, 8]
    kept["about"] = np.array(json.dumps(about | {field: [1, 16, 16] if field == "shape" else "other"}))
    np.savez(path, **kept)
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 2
    assert str(path) in failure(run)
    assert f"{field}: is" in failure(run)
    path.write_bytes(path.read_bytes()[:100])
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 2
    assert str(path) in failure(run)
    assert "remove it" in failure(run)
    path.unlink()
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 0


def test_a_damaged_classifier_is_refused(make: Callable[..., Path], root: Path) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 0
    (path,) = (root / "classifiers").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 2
    assert str(path) in failure(run)


def test_an_evaluation_works_if_the_data_root_is_not_writable(
    make: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a")
    for name in ("classifiers", "statistics"):
        (root / name).write_text("a file stands where the folder would be")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 0
    assert "cannot be kept" in capsys.readouterr().err


# --- milestones


def test_best_selects_the_milestone_by_its_validation_metric(make: Callable[..., Path]) -> None:
    run = make("a", steps=(10, 20, 30))
    assert main.main([str(run), "--metrics", "fid_classifier", "reconstruction"]) == 0
    history, metrics = {row["step"]: row["metrics"] for row in found(run)["history"]}, found(run)["metrics"]
    assert list(history) == [10, 20, 30]
    for name in ("fid_classifier", "reconstruction_mse"):
        best = min(history, key=lambda step, name=name: history[step][f"validation/{name}"])  # type: ignore[misc]
        assert metrics[f"best/{name}"] == history[best][name]
        assert metrics[name] == history[30][name]
        assert len({row[name] for row in history.values()}) == 3
        chosen = {"chosen at step": best, "chosen by": f"validation/{name}"}
        assert found(run)["provenance"][f"best/{name}"] == chosen
        report.write_report(run.parent)
        with (run.parent / "report" / "results.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row[f"best/{name} step"] == str(best)
        assert f'title="weights of step {best}"' in (run.parent / "report" / "index.html").read_text()


# --- reconstruction and figures


def test_reconstruction_error_matches_a_manual_computation(make: Callable[..., Path], root: Path) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "reconstruction"]) == 0
    method = trained_method(run)
    x = torch.from_numpy(np.array(arrays(root, "test").images)) / 127.5 - 1
    with torch.no_grad():
        of_each = ((method.reconstruct(x) - x) ** 2).mean((1, 2, 3)).double().numpy()
    assert found(run)["metrics"]["reconstruction_mse"] == pytest.approx(of_each.mean(), rel=1e-5)
    low, high = found(run)["intervals"]["reconstruction_mse"]
    assert high - low == pytest.approx(2 * 1.96 * of_each.std(ddof=1) / 8**0.5, rel=1e-4)
    kept = np.load(run / "eval" / "reconstruction.npz")
    assert kept["given"].shape == kept["again"].shape == (8, 1, 8, 8)
    np.testing.assert_allclose(kept["mse"], of_each[kept["images"]], rtol=1e-4)


def test_one_test_image_has_an_error_but_no_interval(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TrainedTrial.arrays

    def one(subject: TrainedTrial, domain: str, split: str) -> Arrays:
        arrays = right(subject, domain, split)
        return Arrays(arrays.images[:1], arrays.labels[:1])

    monkeypatch.setattr(TrainedTrial, "arrays", one)
    run = make("a")
    assert main.main([str(run), "--metrics", "reconstruction"]) == 0
    assert found(run)["metrics"]["reconstruction_mse"] > 0
    assert found(run)["intervals"] == {}
    for word in ("Infinity", "NaN"):
        assert word not in (run / "eval" / "metrics.json").read_text()


def test_tensorboard_shows_the_samples_of_each_milestone_at_its_step(make: Callable[..., Path]) -> None:
    run = make("a", steps=(10, 20))
    assert main.main([str(run), "--metrics", "samples"]) == 0
    assert main.main([str(run), "--metrics", "reconstruction"]) == 0  # which writes the TensorBoard files again
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    pictures = ("samples_last", "samples_by_step", "samples_nearest", "reconstruction")
    assert steps == {"samples": [10, 20], **{name: [20] for name in pictures}}
    method = trained_method(run)  # at step 10
    seed_torch(3, "samples", 0)
    with torch.no_grad():
        images = to_bytes(method.sample(samples.SHOWN))[:, 0].numpy()
    shown = np.asarray(Image.open(io.BytesIO(events.Images("samples")[0].encoded_image_string)))
    assert shown.shape == (18, 48, 3)  # two rows of five images of 8 pixels, 2 pixels between them
    np.testing.assert_array_equal(shown[:8, :8, 0], images[0])
    np.testing.assert_array_equal(shown[10:, 40:, 0], images[9])
    assert events.Images("samples")[0].encoded_image_string != events.Images("samples")[1].encoded_image_string


def test_every_figure_is_drawn_from_the_same_noise(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsne, "IMAGES", 8)
    run = make("a", steps=(10, 20), labels=True)
    assert main.main([str(run), "--metrics", "samples", "tsne", "reconstruction"]) == 0
    stems = ("samples", "samples_by_step", "samples_by_class", "samples_nearest", "tsne", "reconstruction")
    assert {path.stem for path in (run / "eval").glob("*.png")} == set(stems)
    first = np.load(run / "eval" / "samples.npz")["images"]
    assert first.shape == (64, 1, 8, 8)
    assert main.main([str(run), "--metrics", "samples", "--force"]) == 0
    np.testing.assert_array_equal(np.load(run / "eval" / "samples.npz")["images"], first)


def test_an_unconditional_method_has_no_figure_by_class(make: Callable[..., Path]) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "samples"]) == 0
    assert {path.stem for path in (run / "eval").glob("*.png")} == {"samples", "samples_nearest"}


def test_nearest_matches_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CHUNK", 7)
    random = np.random.default_rng(0)
    images, among = (random.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8) for n in (9, 30))
    index, error = samples.nearest(images, among, torch.device("cpu"))
    apart = (((images[:, None].astype(float) - among[None]) / 127.5) ** 2).mean((2, 3, 4))
    assert index.tolist() == apart.argmin(1).tolist()
    np.testing.assert_allclose(error, apart.min(1))


# --- bad methods


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("torch.tanh(self.head(noise))", "(self.head(noise) / 0)", ("sample()", "not finite", "step 10")),
        ("torch.randn(n, 16", "torch.randn(n + 1, 16", ("sample()", "(9, 1, 8, 8)", "(8, 1, 8, 8)")),
    ],
)
def test_invalid_samples_are_refused(make: Callable[..., Path], was: str, becomes: str, words: Any) -> None:
    run = make("a", text=METHOD.replace(was, becomes, 1))
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 2
    for word in words:
        assert word in failure(run)
    assert not found(run)


def test_features_that_are_not_finite_are_refused(
    make: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("a")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 0

    right = Extractor.features
    monkeypatch.setattr(Extractor, "features", lambda self, images: right(self, images) + torch.nan)
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 2
    said = "step 10: fid_classifier: of samples: classifier, on cpu: the features are not finite; remove "
    assert f"{said}{root / 'classifiers'}" in failure(run)
    for path in (root / "statistics").glob("*.npz"):
        path.unlink()
    assert main.main([str(run), "--metrics", "fid_classifier", "--force"]) == 2
    said = f"{root / 'cache' / 'tiny-8x8x1-v1'}: validation images: classifier, on cpu: the features are not finite; "
    assert f"{said}remove {root / 'classifiers'}" in failure(run)
    assert ".npz" not in failure(run)


def test_metrics_of_images_are_refused_for_a_method_without_images(make: Callable[..., Path]) -> None:
    run = make("a", text=METHOD.replace("def sample", "def draw").replace("def reconstruct", "def again"))
    assert main.main([str(run), "--metrics", "fid", "fid_classifier", "samples", "reconstruction"]) == 2
    for word in ("fid needs sample()", "fid_classifier needs", "samples needs", "reconstruction needs reconstruct()"):
        assert word in failure(run)


def test_a_single_sample_is_refused(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_SAMPLES", 1)
    run = make("a")
    assert main.main([str(run), "--metrics", "fid_classifier"]) == 2
    assert "fid_classifier: 1 images" in failure(run)


# --- samples as files


def test_exported_samples_are_numbered_and_depend_on_the_seed_alone(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("a", steps=(10, 20))

    def drawn(name: str, *options: str) -> np.ndarray:
        assert main.main([str(run), "--out", str(tmp_path / name), *options]) == 0
        return pngs(tmp_path / name)

    monkeypatch.setattr(sampling, "CHUNK", 5)
    first = drawn("first", "--samples", "12")
    assert [path.name for path in sorted((tmp_path / "first").iterdir())] == [f"{i:03d}.png" for i in range(1, 13)]
    assert first.shape == (12, 8, 8)
    (tmp_path / "again").mkdir()  # an empty folder will do
    np.testing.assert_array_equal(drawn("again", "--samples", "12", "--seed", "3"), first)
    assert len(np.unique(first.reshape(12, -1), axis=0)) == 12, "no chunk repeats another"
    np.testing.assert_array_equal(drawn("fewer", "--samples", "5"), first[:5])
    assert (drawn("other", "--samples", "12", "--seed", "4") != first).any()
    assert (drawn("former", "--samples", "12", "--step", "10") != first).any()
    # Of several processes the first one draws.
    for variable, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(variable, value)
    assert len(drawn("second process", "--samples", "12")) == 0


def test_file_names_of_samples_begin_with_their_class(make: Callable[..., Path], tmp_path: Path) -> None:
    run = make("a", labels=True)
    assert main.main([str(run), "--samples-per-class", "3", "--out", str(tmp_path / "both")]) == 0
    names = [path.name for path in sorted((tmp_path / "both").iterdir())]
    assert names == [f"{c}_{i:03d}.png" for c in (0, 1) for i in (1, 2, 3)]
    only = [str(run), "--samples-per-class", "3", "--labels", "1", "--out", str(tmp_path / "one")]
    assert main.main(only) == 0
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == names[3:]
    method = trained_method(run)
    seed_torch(3, "samples", 0)
    with torch.no_grad():
        images = method.sample(3, labels=torch.ones(3, dtype=torch.int64))
    np.testing.assert_array_equal(pngs(tmp_path / "one"), to_bytes(images)[:, 0].numpy())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "3"], ["--out"]),
        (["--out", "new"], ["--samples"]),
        (["--seed", "0"], ["--out", "--samples"]),
        (["--samples", "3", "--samples-per-class", "3", "--out", "new"], ["one of"]),
        (["--samples", "3", "--out", "full"], ["full", "nothing is overwritten"]),
        (["--samples", "3", "--out", "full/a.txt"], ["a.txt"]),
        (["--samples", "3", "--out", "full/a.txt/b"], ["cannot be written"]),
        (["--samples", "3", "--labels", "0", "--out", "new"], ["--labels", "--samples-per-class"]),
        (["--samples", "3", "--step", "11", "--out", "new"], ["step 11", "10"]),
        (["--samples-per-class", "3", "--labels", "7", "--out", "new"], ["--labels 7", "0 to 1"]),
    ],
)
def test_invalid_sample_options_are_refused_and_write_nothing(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = make("a", labels=True)
    work = tmp_path / "work"
    (work / "full").mkdir(parents=True)
    (work / "full" / "a.txt").write_text("mine")
    monkeypatch.chdir(work)
    assert main.main([str(run), *options]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert [str(path.relative_to(work)) for path in sorted(work.rglob("*"))] == ["full", "full/a.txt"]


def test_samples_per_class_of_an_unconditional_method_are_refused(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([str(make("a")), "--samples-per-class", "3", "--out", str(tmp_path / "new")]) == 2
    assert "--samples instead" in capsys.readouterr().err


def test_samples_need_exactly_one_run_directory(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = str(make("a")), ["--samples", "3", "--out", str(tmp_path / "new")]
    assert main.main([run, run, *options]) == 2
    assert main.main([str(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert "one run directory" in said
    assert "is not a run directory" in said


def test_a_failed_export_of_samples_leaves_no_file(make: Callable[..., Path], tmp_path: Path) -> None:
    run = make("a", text=METHOD.replace("torch.tanh(self.head(noise))", "(self.head(noise) / 0)", 1))
    (tmp_path / "out").mkdir()
    assert main.main([str(run), "--samples", "3", "--out", str(tmp_path / "out" / "new")]) == 2
    assert not list((tmp_path / "out").iterdir())


# --- faces


def photographs(n: int, size: int) -> np.ndarray:
    """Return n slightly different crops of a face that ships with matplotlib: uint8 [n, 3, size, size]."""
    path: Any = get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(path) as image:
        cuts = [(145 - 3 * i, 40 - 3 * i, 395 + 3 * i, 290 + 3 * i) for i in range(n)]
        return np.stack([np.asarray(image.crop(cut).resize((size, size))).transpose(2, 0, 1) for cut in cuts])


def test_the_detector_finds_faces_and_none_in_noise(root: Path) -> None:
    has_face, facts = face_rate.load_detector("here")
    for size in (32, 64):
        assert all(map(has_face, photographs(6, size)))
    assert has_face(photographs(1, 64).mean(1, keepdims=True).astype(np.uint8)[0])
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    assert not any(map(has_face, noise))
    assert facts["detector"].endswith(".xml")


def test_the_face_rate_counts_samples_and_test_images(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def every_fourth(image: np.ndarray) -> bool:
        seen.append(image.shape)
        return len(seen) % 4 == 0

    monkeypatch.setattr(face_rate, "load_detector", lambda who: (every_fourth, {"detector": "none"}))
    monkeypatch.setattr(face_rate, "SAMPLES", 200)
    run = make("run")
    assert main.main([str(run), "--metrics", "face_rate"]) == 0
    assert seen == [(1, 8, 8)] * (200 + SIZES["test"])
    low, high = found(run)["intervals"]["face_rate"]
    assert found(run)["metrics"]["face_rate"] == 0.25
    assert low < 0.25 < high
    assert found(run)["provenance"]["face_rate"]["test images"]["face_rate"] == 0.25


@pytest.mark.parametrize("version", ["missing", "without cascades"])
def test_without_a_detector_face_rate_names_what_to_install(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    if version == "missing":
        monkeypatch.setitem(sys.modules, "cv2", None)
    else:
        monkeypatch.setattr("cv2.data.haarcascades", str(tmp_path))
    run = make("run")
    assert main.main([str(run), "--metrics", "face_rate"]) == 2
    assert "pip install -e '.[faces]'" in failure(run)


# --- several processes


def in_two(run: Path, data_root: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "eval/main.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}
    return subprocess.run(
        [*command, str(run), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_give_the_results_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_root = str(tmp_path / "data")  # of its own: the classifier is less trained than others expect
    stage("mnistm5k", Path(data_root), Form(28, 3))
    monkeypatch.setattr(classifier, "STEPS", 20)
    run = tmp_path / "sweep" / "run"
    (run / "weights").mkdir(parents=True)
    document = {"name": "s", "method": "acgan", "model": {"width": 8}, "data": {"dataset": "mnistm5k"}}
    config = resolve(
        {**document, "train": {"steps": 20}, "eval": {"metrics": ["samples", "class_accuracy", "fid_classifier"]}},
        "test",
    )
    (run / "config.yaml").write_text(config.to_yaml())
    monkeypatch.setenv("TURNOUT_DATA", data_root)
    for step in (10, 20):
        torch.manual_seed(step)
        state = models.load("acgan")(DataSpec(3, 28, 10), width=8).state_dict()
        save_file(state, run / "weights" / f"step-{step:06d}.safetensors")
    assert main.main([str(run)]) == 0
    one = found(run)
    shutil.rmtree(run / "eval")
    ran = in_two(run, data_root)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("fid_classifier:") == 1  # the first one alone reports
    two = found(run)
    for record in (one, two):
        assert record["metrics"].pop("seconds_per_1000_samples") > 0
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["provenance"]["class_accuracy"]["by class"] == one["provenance"]["class_accuracy"]["by class"]
    assert [row["step"] for row in two["history"]] == [10, 20]
    assert {p.name for p in (run / "eval").glob("*.png")} >= {"samples.png", "class_accuracy.png"}

    # What both refuse is said once.
    state["generator.0.weight"].fill_(torch.nan)
    save_file(state, run / "weights" / "step-000020.safetensors")
    ran = in_two(run, data_root, "--metrics", "fid_classifier")
    assert ran.returncode != 0
    assert ran.stderr.count("error: ") == 1
    assert "is not finite" in failure(run)


@pytest.mark.parametrize("kind", ["ConfigError", "KeyError"])
def test_an_error_of_one_process_ends_all(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from eval import distributed\n"
        "from trainer.errors import ConfigError\n"
        "def make():\n"
        f"    if distributed.rank() == 1: raise {kind}('the second')\n"
        "    return distributed.rank()\n"
        "with distributed.process_group():\n"
        "    assert distributed.gather(distributed.rank) == [0, 1]\n"
        "    assert distributed.broadcast(f'of {distributed.rank()}') == 'of 0'\n"
        "    try:\n"
        "        distributed.gather(make)\n"
        "    except Exception as error:\n"
        "        Path(sys.argv[1], str(distributed.rank())).write_text(f'{type(error).__name__} {error}')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command.append(str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    own = f"{kind} {KeyError('the second') if kind == 'KeyError' else 'the second'}"
    other = own if kind == "ConfigError" else f"RuntimeError process 1: {KeyError('the second')}"
    assert [(tmp_path / rank).read_text() for rank in "01"] == [other, own]
