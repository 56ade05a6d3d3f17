"""The evaluation of trained trials: numbers against manual counts, honest selection, and unusable trials."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load as load_weights
from safetensors.torch import load_file, save_file
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from threadpoolctl import threadpool_limits

import models
from eval import figures, main, metrics, record
from eval.features import classifier
from eval.metrics import accuracy, names, proxy_distance, tsne
from eval.record import Result
from eval.trial import TrainedTrial
from models.base import DataSpec, Method
from tests import warm
from trainer.config.resolve import load_config, resolve
from trainer.data.cache import Arrays, load, stage
from trainer.data.dataset import Form
from trainer.preview import information
from trainer.runs.atomic import read_json
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
STEPS = 30
LAST = f"step-{STEPS:06d}.safetensors"
METHOD = '''"""A linear classifier."""

from torch import Tensor, nn

from models.base import DataSpec, Method


class Linear(Method):
    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        self.head = nn.Linear(data.channels * data.size**2, data.classes)
'''
CAPABILITY = """
    def {}(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """Return a tiny trained DANN trial with weights of steps 10, 20 and 30, which no test changes."""
    runs = tmp_path_factory.mktemp("trained")
    settings = [f"train.steps={STEPS}", "train.export_every=10", "train.batch_size=16", f"data.root={data_root}"]
    command = [sys.executable, "trainer/main.py", "sweeps/dann.yaml", *settings, "--runs", str(runs)]
    warm.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (run,) = runs.glob("dann/*")
    return run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Return a copy of that trial, evaluated by its own config, which no test changes."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    assert main.main([str(run)]) == 0
    return run


@pytest.fixture
def run(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the trained trial that a test may change; its t-SNE has few points."""
    monkeypatch.setattr(tsne, "IMAGES", 30)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def plugin(
    tmp_path: Path, data_root: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that creates a finished trial on `digits` of a method with some capabilities."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(models, "FOLDER", folder)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    stage("digits", Path(data_root), Form(8, 1))

    def make(*capabilities: str, steps: tuple[int, ...] = (10,)) -> Path:
        name = "stub_" + hashlib.sha256(repr((request.node.name, capabilities)).encode()).hexdigest()[:8]
        (folder / f"{name}.py").write_text(METHOD + "".join(CAPABILITY.format(c) for c in capabilities))
        document = {"name": "s", "method": name, "data": {"dataset": "digits", "root": data_root}}
        config = resolve({**document, "train": {"steps": max(steps)}, "eval": {"metrics": ["accuracy"]}}, "test")
        run = tmp_path / "sweep" / name
        (run / "weights").mkdir(parents=True)
        (run / "config.yaml").write_text(config.to_yaml())
        for step in steps:
            torch.manual_seed(step)
            method = models.load(name)(DataSpec(*config.data.shape()))
            save_file(method.state_dict(), run / "weights" / f"step-{step:06d}.safetensors")
        return run

    return make


def arrays(run: Path, domain: str, split: str) -> Arrays:
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    return load(data[domain], split, Path(data["root"]), Form(data["size"], data["channels"]))


def predicted(run: Path, step: int, domain: str, split: str = "test") -> np.ndarray:
    """Return the classes [n] that the trial's network predicts, without code of eval/."""
    weights = (run / "weights" / f"step-{step:06d}.safetensors").read_bytes()
    return _predicted(weights, (run / "config.yaml").read_text(), domain, split)


@lru_cache
def _predicted(weights: bytes, text: str, domain: str, split: str) -> np.ndarray:
    config = yaml.safe_load(text)
    method = models.load(config["method"])(DataSpec(3, 28, 10), **config["model"])
    method.load_state_dict(load_weights(weights))
    images = np.array(load(config["data"][domain], split, Path(config["data"]["root"]), Form(28, 3)).images)
    with torch.no_grad():
        logits: torch.Tensor = getattr(method.eval(), "predict")(torch.from_numpy(images) / 127.5 - 1)  # noqa: B009
    return logits.argmax(1).numpy()


def share(run: Path, step: int, domain: str, split: str = "test") -> float:
    """Return the accuracy, counted one by one."""
    pairs = list(zip(arrays(run, domain, split).labels.tolist(), predicted(run, step, domain, split), strict=True))
    return sum(true == guess for true, guess in pairs) / len(pairs)


def found(run: Path) -> dict[str, Any]:
    return read_json(run / "eval" / "metrics.json")


def failure(run: Path) -> str:
    error: str = read_json(run / "eval" / "failed.json")["error"]
    return error


def set_config(run: Path, section: str, **values: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section].update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def change(path: Path, name: str, value: float) -> None:
    """Overwrite one value of exported weights."""
    state = load_file(path)
    state[name].view(-1)[0] = value
    save_file(state, path)


def board(run: Path) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]], dict[tuple[str, int], float]]:
    """Return what TensorBoard shows of the evaluation: counts of (name, step) for scalars and images, and values."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("eval/")]
    scalars = [(tag[5:], event.step, event.value) for tag in names for event in events.Scalars(tag)]
    images = Counter((tag, event.step) for tag in events.Tags()["images"] for event in events.Images(tag))
    return Counter((tag, step) for tag, step, _ in scalars), images, {(tag, step): v for tag, step, v in scalars}


# --- numbers


@pytest.mark.parametrize("domain", ["source", "target"])
def test_accuracy_matches_a_manual_count(evaluated: Path, domain: str) -> None:
    guesses, labels = predicted(evaluated, STEPS, domain), arrays(evaluated, domain, "test").labels
    assert found(evaluated)["metrics"][f"accuracy/{domain}"] == share(evaluated, STEPS, domain)
    counts = np.load(evaluated / "eval" / f"confusion_{domain}.npz")["counts"]
    by_hand = Counter(zip(labels.tolist(), guesses.tolist(), strict=True))
    assert counts.tolist() == [[by_hand[row, column] for column in range(10)] for row in range(10)]
    assert counts.sum(1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert len(set(guesses.tolist())) > 1, "a network that always says the same proves nothing"


@pytest.mark.parametrize("domain", ["source", "target"])
def test_the_interval_of_an_accuracy_is_wilsons(evaluated: Path, domain: str) -> None:
    n, p = len(arrays(evaluated, domain, "test").labels), share(evaluated, STEPS, domain)
    low, high = found(evaluated)["intervals"][f"accuracy/{domain}"]
    expected = stats.binomtest(round(p * n), n).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    # Wilson (1927): where the normal approximation, with the deviation of the bound itself, just reaches p.
    for bound in (low, high):
        assert abs(p - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5, rel=1e-6)
    assert 0 <= low < p < high <= 1


def test_each_selection_rule_reports_the_test_accuracy_of_its_milestone(run: Path) -> None:
    first, last = run / "weights" / "step-000010.safetensors", run / "weights" / LAST
    weights = first.read_bytes(), last.read_bytes()
    first.write_bytes(weights[1])  # the best in the first place: so that best, oracle and last are not all the same
    last.write_bytes(weights[0])
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    metrics, history = found(run)["metrics"], {row["step"]: row["metrics"] for row in found(run)["history"]}
    assert list(history) == [10, 20, 30]
    for step, row in history.items():
        assert row == {
            f"{prefix}accuracy/{domain}": share(run, step, domain, split)
            for domain in ("source", "target")
            for prefix, split in (("validation/", "validation"), ("", "test"))
        } | {"validation/information/target": row["validation/information/target"]}
    criteria = {"oracle": "accuracy/target", "best": "accuracy/source", "infomax": "information/target"}
    for rule, criterion in criteria.items():
        chosen = max(history, key=lambda step: history[step][f"validation/{criterion}"])
        assert metrics[f"{rule}/accuracy/target"] == share(run, chosen, "target")
        said = {"chosen at step": chosen, "chosen by": f"validation/{criterion}"}
        assert found(run)["provenance"][f"{rule}/accuracy/target"] == said
    assert metrics["oracle/accuracy/target"] != metrics["accuracy/target"]
    plain = {"accuracy/source", "accuracy/target"}
    assert set(metrics) == plain | {f"{rule}/accuracy/target" for rule in criteria}


def test_information_is_the_mutual_information_of_image_and_class() -> None:
    """It is 0 if all images have one prediction, and the log of the number of classes if each is certain."""
    sure = 50 * np.eye(4)
    assert information(sure) == pytest.approx(np.log(4))
    assert information(np.tile(sure[0], (4, 1))) == pytest.approx(0)
    assert information(np.zeros((5, 4))) == pytest.approx(0)
    logits = np.random.RandomState(0).normal(size=(7, 3)) * 3
    joint = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) / 7  # p(image, class), each image as likely
    by_hand = sum(p * np.log(p / (joint[i].sum() * joint[:, k].sum())) for (i, k), p in np.ndenumerate(joint))
    assert information(logits.astype(np.float32)) == pytest.approx(by_hand, rel=1e-5)


def test_a_target_without_labels_has_no_accuracy(
    run: Path, data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    for labels in root.glob("cache/mnistm5k-*/*_labels.npy"):
        np.save(labels, np.full(len(np.load(labels)), -1))
    set_config(run, "data", root=str(root))
    assert main.main([str(run), "--metrics", "accuracy", "tsne"]) == 0
    reason = "left out: the test split of mnistm5k has no labels"
    assert f"accuracy/target: {reason}" in capsys.readouterr().err
    record = found(run)
    assert set(record["metrics"]) == {"accuracy/source"}
    assert record["provenance"]["accuracy/target"] == reason
    assert set(np.load(run / "eval" / "tsne.npz")["labels"]) == {-1, *range(10)}


def test_without_milestones_no_selection_is_reported(run: Path) -> None:
    for step in (10, 20):
        (run / "weights" / f"step-{step:06d}.safetensors").unlink()
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    assert set(found(run)["metrics"]) == {"accuracy/source", "accuracy/target"}


def test_only_oracle_metrics_depend_on_target_validation_labels(
    run: Path, evaluated: Path, data_root: str, tmp_path: Path
) -> None:
    worst = min((10, 20, 30), key=lambda step: share(run, step, "target"))
    lie = predicted(run, worst, "target", "validation")
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    for labels in root.glob("cache/mnistm5k-*/validation_labels.npy"):  # of all sizes that are staged
        np.save(labels, lie)  # labels that speak for the worst milestone
    set_config(run, "data", root=str(root))
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    before, after = found(evaluated)["metrics"], found(run)["metrics"]
    assert after.pop("oracle/accuracy/target") == share(run, worst, "target") < before.pop("oracle/accuracy/target")
    assert after == before
    assert found(run)["intervals"] == found(evaluated)["intervals"]
    for old, new in zip(found(evaluated)["history"], found(run)["history"], strict=True):
        name = "validation/accuracy/target"
        assert old["metrics"] | {name: 0} == new["metrics"] | {name: 0}
    for name in ("confusion_source.npz", "confusion_target.npz"):
        np.testing.assert_array_equal(
            np.load(run / "eval" / name)["counts"], np.load(evaluated / "eval" / name)["counts"]
        )


def test_an_evaluation_on_validation_images_never_reads_the_test_split(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, drawn = TrainedTrial.arrays, list[str]()

    def refuse_test(self: TrainedTrial, domain: str, split: str) -> Arrays:
        assert split == "validation"
        return read(self, domain, split)

    def note(counts: Any, title: str, classes: Any) -> Any:
        drawn.append(title)
        return confusion(counts, title, classes)

    confusion = figures.confusion
    monkeypatch.setattr(TrainedTrial, "arrays", refuse_test)
    monkeypatch.setattr(figures, "confusion", note)
    set_config(run, "eval", split="validation")
    assert main.main([str(run), "--metrics", "accuracy", "tsne"]) == 0
    metrics, provenance = found(run)["metrics"], found(run)["provenance"]
    assert metrics["validation/accuracy/target"] == share(run, STEPS, "target", "validation")
    assert "accuracy/target" not in metrics
    assert {"oracle/validation/accuracy/target", "best/validation/accuracy/target"} <= set(metrics)
    assert any("mnistm5k validation: accuracy" in title for title in drawn)
    assert provenance["tsne"]["split"] == provenance["validation/accuracy/target"]["split"] == "validation"


def test_metrics_and_figures_of_a_single_dataset_name_no_domain(plugin: Callable[..., Path]) -> None:
    run = plugin("predict", "features", steps=(10, 20, 30))
    assert main.main([str(run), "--metrics", "accuracy", "tsne"]) == 0
    metrics, history = found(run)["metrics"], [row["metrics"] for row in found(run)["history"]]
    assert set(metrics) == {"accuracy", "best/accuracy"}
    assert metrics["best/accuracy"] == max(history, key=lambda row: row["validation/accuracy"])["accuracy"]
    files = {path.name for path in (run / "eval").iterdir() if not path.name.startswith(".")}
    assert files == {
        "metrics.json",
        *(f"{stem}.{form}" for stem in ("confusion", "tsne") for form in ("npz", "png", "pdf")),
    }
    assert not np.load(run / "eval" / "tsne.npz")["domains"].any()


# --- t-SNE and pictures


def test_tsne_saves_points_features_and_the_index_of_each_image(evaluated: Path) -> None:
    arrays_of = dict(np.load(evaluated / "eval" / "tsne.npz"))
    points, features, labels, domains, images = (
        arrays_of.pop(k) for k in ("points", "features", "labels", "domains", "images")
    )
    assert not arrays_of
    n = 2 * tsne.IMAGES
    assert (points.shape, points.dtype) == ((n, 2), np.float32)
    assert (features.shape, features.dtype) == ((n, 512), np.float32)
    assert np.isfinite(points).all()
    assert points.std(0).min() > 1, "all points in one place"
    assert domains.tolist() == [0] * tsne.IMAGES + [1] * tsne.IMAGES
    for number, domain in enumerate(("source", "target")):
        whole = arrays(evaluated, domain, "test")
        assert labels[domains == number].tolist() == whole.labels[images[domains == number]].tolist()
    # mnistm5k is made of the digits of mnist5k: no digit is shown twice.
    assert len(set(images.tolist())) == n
    network = models.load("dann")(DataSpec(3, 28, 10))
    network.load_state_dict(load_file(evaluated / "weights" / LAST))
    x = torch.from_numpy(np.array(arrays(evaluated, "source", "test").images[images[:5]])) / 127.5 - 1
    with torch.no_grad():
        vectors: torch.Tensor = getattr(network.eval(), "features")(x)  # noqa: B009
    np.testing.assert_allclose(features[:5], vectors.numpy(), rtol=1e-4, atol=1e-5)


def test_tsne_does_not_depend_on_the_number_of_threads(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsne, "IMAGES", 500)  # with fewer points even two threads happen to give the same
    points = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            assert main.main([str(run), "--metrics", "tsne", "--force"]) == 0
        points.append(np.load(run / "eval" / "tsne.npz")["points"])
    np.testing.assert_array_equal(*points)


def test_figures_are_complete_and_show_every_group(evaluated: Path) -> None:
    for name in ("tsne", "confusion_source", "confusion_target"):
        with Image.open(evaluated / "eval" / f"{name}.png") as image:
            assert image.width > 400
            shown = {"#{:02x}{:02x}{:02x}".format(*pixel) for _, pixel in image.convert("RGB").getcolors(1 << 20) or []}
        if name == "tsne":  # the marks of the legends have the pure colours
            assert {*figures.CLASSES, *figures.DOMAINS} <= shown


# --- what has been evaluated stays, and only what is missing is done


def test_the_record_states_how_its_numbers_were_computed(evaluated: Path) -> None:
    assert found(evaluated)["step"] == STEPS
    provenance = found(evaluated)["provenance"]
    content = (evaluated / "weights" / LAST).read_bytes()
    assert provenance["weights"] == {
        "file": LAST,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    for domain, name in (("source", "mnist5k"), ("target", "mnistm5k")):
        assert provenance[f"accuracy/{domain}"] == {"set": name, "split": "test", "n": 1000, "step": STEPS}
    assert provenance["tsne"]["n"] == 2 * tsne.IMAGES
    assert list(provenance["evaluations"]) == ["accuracy", "tsne"]
    for how in provenance["evaluations"].values():
        assert how["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert how["versions"]["numpy"] == np.__version__
        assert how["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
        assert how["seconds"] > 0


def test_tensorboard_has_every_scalar_and_picture_once(run: Path) -> None:
    for arguments in (["--metrics", "accuracy"], [], ["--force"]):
        assert main.main([str(run), *arguments]) == 0
    assert len(list((run / "tensorboard").glob("*.eval"))) == 1
    scalars, images, values = board(run)
    record_ = found(run)
    expected = {(k, row["step"]): v for row in record_["history"] for k, v in row["metrics"].items()}
    expected |= {(k, STEPS): v for k, v in record_["metrics"].items()}
    assert values == pytest.approx(expected, rel=1e-6)
    assert set(scalars.values()) == {1}
    assert images == Counter({("confusion_source", STEPS): 1, ("confusion_target", STEPS): 1, ("tsne", STEPS): 1})


def test_a_second_evaluation_does_nothing_unless_forced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    assert main.main([str(run)]) == 0
    before, content = files(), found(run)
    assert main.main([str(run)]) == 0
    assert "already evaluated" in capsys.readouterr().err
    assert files() == before
    # Weights that are thrown away once they are evaluated do not make the evaluation worthless.
    shutil.move(run / "weights", run / "away")
    assert main.main([str(run)]) == 0
    shutil.move(run / "away", run / "weights")
    assert main.main([str(run), "--force"]) == 0
    assert files() != before
    for key in ("step", "metrics", "intervals", "history"):
        assert found(run)[key] == content[key]


def test_values_of_an_older_recipe_are_out_of_date_while_their_weights_exist(run: Path) -> None:
    def is_current() -> bool:
        return record.is_current(RunDirectory(run), STEPS, ["accuracy"])

    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    evaluated = found(run)
    evaluated["provenance"]["evaluations"]["accuracy"]["recipe"] = 0
    (run / "eval" / "metrics.json").write_text(json.dumps(evaluated))
    assert not is_current()
    shutil.move(run / "weights", run / "away")
    assert is_current(), "without weights nothing can be computed again"
    shutil.move(run / "away", run / "weights")
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    assert is_current()


def test_metrics_that_use_the_classifier_have_its_recipe() -> None:
    def uses_classifier(module: Any) -> bool:
        names_in_module = vars(module).values()
        return any(v is classifier or getattr(v, "__module__", "") == classifier.__name__ for v in names_in_module)

    users = [name for name in names() if uses_classifier(metrics.load(name))]
    assert {"class_accuracy", "fid_classifier"} <= set(users)
    assert {name: metrics.recipe(name) for name in users} == dict.fromkeys(users, classifier.RECIPE)
    assert {name: metrics.load(name).METRIC.recipe for name in users} == dict.fromkeys(users, classifier.RECIPE)


def test_a_metric_evaluated_later_keeps_earlier_results(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    former = found(run)
    with monkeypatch.context() as patch:  # accuracy is there already: it is not made a second time
        patch.setattr(accuracy, "evaluate", lambda subject: pytest.fail("made again"))
        assert main.main([str(run), "--metrics", "accuracy", "tsne"]) == 0
    both = found(run)
    for key in ("step", "metrics", "intervals", "history"):
        assert both[key] == former[key]
    assert both["provenance"] | former["provenance"] | {"evaluations": {}} == both["provenance"] | {"evaluations": {}}
    assert list(both["provenance"]["evaluations"]) == ["accuracy", "tsne"]
    assert both["provenance"]["evaluations"]["accuracy"] == former["provenance"]["evaluations"]["accuracy"]
    assert main.main([str(run), "--metrics", "tsne", "--force"]) == 0
    assert found(run)["metrics"] == former["metrics"]
    assert (run / "eval" / "confusion_target.png").exists()


def test_results_of_other_weights_are_dropped(run: Path) -> None:
    assert main.main([str(run)]) == 0
    assert record.is_current(RunDirectory(run), load_config(run / "config.yaml").train.steps, ["accuracy", "tsne"])
    change(run / "weights" / LAST, "classifier.0.bias", 5.0)
    assert not record.is_current(RunDirectory(run), load_config(run / "config.yaml").train.steps, ["accuracy"])
    assert main.main([str(run), "--metrics", "tsne"]) == 0
    assert found(run)["metrics"] == {}
    assert found(run)["history"] == []
    assert list(found(run)["provenance"]["evaluations"]) == ["tsne"]
    assert {path.name for path in (run / "eval").glob("*.[np]*[gz]")} == {"tsne.png", "tsne.npz"}
    assert board(run)[0] == Counter()


def test_an_unfinished_trial_is_evaluated_at_its_newest_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "done").unlink()
    last = (run / "weights" / LAST).rename(run / "later")
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    assert "is at step 20 of 30" in capsys.readouterr().err
    assert found(run)["step"] == 20
    assert found(run)["metrics"]["accuracy/target"] == share(run, 20, "target")
    assert not record.is_current(RunDirectory(run), load_config(run / "config.yaml").train.steps, ["accuracy"])
    last.rename(run / "weights" / LAST)
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    assert found(run)["step"] == STEPS
    assert found(run)["metrics"]["accuracy/target"] == share(run, STEPS, "target")


def test_two_simultaneous_evaluations_of_a_trial_compute_it_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, calls = threading.Barrier(2), []

    def evaluate(subject: TrainedTrial) -> Result:
        calls.append(subject)
        with pytest.raises(threading.BrokenBarrierError):  # nobody else ever comes here
            together.wait(0.5)
        return Result({"accuracy/target": 0.5})

    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    codes: list[int] = []
    arguments = [str(run), "--metrics", "accuracy"]
    threads = [threading.Thread(target=lambda: codes.append(main.main(arguments))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (codes, len(calls)) == ([0, 0], 1)


def test_milestones_are_loaded_one_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 9):
        shutil.copy(run / "weights" / LAST, run / "weights" / f"step-{step:06d}.safetensors")
    networks: list[weakref.ref[Method]] = []
    most = 0

    def predictions(subject: TrainedTrial, domain: str, split: str) -> tuple[Any, Any]:
        nonlocal most
        networks.append(weakref.ref(subject.method))
        most = max(most, len({id(network()) for network in networks if network() is not None}))
        return np.zeros(10, int), np.zeros((10, 10))

    monkeypatch.setattr(accuracy, "predictions", predictions)
    assert main.main([str(run), "--metrics", "accuracy"]) == 0
    assert len(found(run)["history"]) == 11
    assert most <= 3  # the one before while the next is read, and the last, which is the subject's own


# --- what goes wrong


@pytest.mark.parametrize(("metric", "needs"), [("tsne", "features"), ("accuracy", "predict")])
def test_an_unsupported_metric_is_refused_with_the_capabilities_of_the_method(
    plugin: Callable[..., Path], capsys: pytest.CaptureFixture[str], metric: str, needs: str
) -> None:
    run = plugin("sample", "reconstruct")
    assert main.main([str(run), "--metrics", metric]) == 2
    message = f"{metric} needs {needs}(), {run.name} has: sample(), reconstruct(); leave {metric} out, or define"
    assert message in capsys.readouterr().err
    assert message in failure(run)
    assert not (run / "eval" / "metrics.json").exists()


def test_an_unsupported_metric_does_not_stop_the_others(plugin: Callable[..., Path]) -> None:
    run = plugin("predict")
    assert main.main([str(run), "--metrics", "tsne", "accuracy"]) == 2
    assert set(found(run)["metrics"]) == {"accuracy"}
    assert "tsne needs features()" in failure(run)
    assert main.main([str(run)]) == 0  # its own config asks for nothing more
    assert not (run / "eval" / "failed.json").exists()


def test_invalid_arguments_change_no_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main.main([str(run), "--metrics", "acuracy"]) == 2
    message = capsys.readouterr().err
    assert (
        message == f"error: --metrics: unknown metric 'acuracy'; did you mean 'accuracy'? valid: {', '.join(names())}\n"
    )
    assert main.main([str(run / "eval")]) == 2
    assert f"error: {run / 'eval'}: is not a run directory: it has no config.yaml" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trial_without_metrics_needs_them_as_arguments(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(run, "eval", metrics=[])
    assert main.main([str(run)]) == 2
    assert f"eval.metrics: names nothing; give --metrics, of: {', '.join(names())}" in capsys.readouterr().err


def remove(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove, "has no exported weights yet; train it first: python trainer/main.py"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), f"{LAST}: cannot be read: "),
        (lambda path: path.write_bytes(b""), f"{LAST}: cannot be read: "),
        (lambda path: change(path, "domain.0.weight", float("nan")), f"{LAST}: domain.0.weight is not finite"),
        (
            lambda path: save_file({"other": torch.zeros(3)}, path),
            f"{LAST}: are not the weights of this dann: ",
        ),
    ],
    ids=["missing", "truncated", "empty", "not-a-number", "of-another-network"],
)
def test_unusable_weights_are_named(
    run: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], Any], message: str
) -> None:
    harm(run / "weights" / LAST)
    assert main.main([str(run), "--metrics", "accuracy"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert message in failure(run)
    assert "Traceback" not in errors
    assert "\n" not in failure(run)
    assert errors.count("error: ") == 1


def test_outputs_that_are_not_finite_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(run / "weights" / LAST)
    state["classifier.3.weight"] *= 3e37 / state["classifier.3.weight"].abs().max().double()
    save_file(state, run / "weights" / LAST)
    assert main.main([str(run), "--metrics", "accuracy"]) == 2
    assert "step 30: the method's outputs are not finite; train it again" in capsys.readouterr().err


def test_a_crashed_metric_is_recorded_and_the_others_are_computed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "other")

    def evaluate(subject: TrainedTrial) -> Result:
        if subject.run.path == run:
            (subject.folder / "half.png").write_bytes(b"half")
            raise RuntimeError("out of\nmemory")
        return Result()

    with monkeypatch.context() as patch:
        patch.setattr(tsne, "evaluate", evaluate)
        assert main.main([str(run), str(other), "--metrics", "tsne", "accuracy"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback (most recent call last)" in errors
    assert failure(run) == "RuntimeError: out of memory"
    assert list(found(run)["provenance"]["evaluations"]) == ["accuracy"]
    assert list(found(other)["provenance"]["evaluations"]) == ["tsne", "accuracy"]
    assert not (other / "eval" / "failed.json").exists()
    assert not (run / "eval" / "half.png").exists(), "what a failed evaluation has drawn is not kept"
    assert not (run / "eval" / ".new").exists()
    assert main.main([str(run)]) == 0  # the same command makes up for what is missing
    assert not (run / "eval" / "failed.json").exists()
    assert list(found(run)["provenance"]["evaluations"]) == ["accuracy", "tsne"]


def test_a_failed_second_evaluation_keeps_the_files_of_the_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main.main([str(run)]) == 0
    before = {path.name: path.read_bytes() for path in (run / "eval").iterdir() if path.is_file()}

    def save(figure: Any, path: Path) -> None:
        path.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "save", save)
    assert main.main([str(run), "--force"]) == 1
    assert "No space left on device" in failure(run)
    (run / "eval" / "failed.json").unlink()
    assert {path.name: path.read_bytes() for path in (run / "eval").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("where", ["metrics", "intervals", "history"])
def test_a_metric_that_is_not_finite_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    odd: dict[str, Any] = {"metrics": {"a": float("nan")}, "intervals": {"a": (0.0, float("inf"))}}
    result = Result(**{where: odd.get(where, {10: {"a": -float("inf")}})})
    monkeypatch.setattr(accuracy, "evaluate", lambda subject: result)
    assert main.main([str(run), "--metrics", "accuracy"]) == 2
    for word in ("eval/metrics/accuracy.py: ", "a", "inf" if where != "metrics" else "nan", "leave that out"):
        assert word in failure(run)
    assert not found(run)


def test_missing_data_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(run, "data", root=str(tmp_path / "nowhere"))
    assert main.main([str(run), "--metrics", "accuracy"]) == 2
    assert "mnist5k is not staged" in capsys.readouterr().err
    assert "mnist5k is not staged" in failure(run)


# --- the command


def test_help_imports_nothing_heavy_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["--help"])
    assert end.value.code == 0
    assert "python eval/main.py logs/dann/" in capsys.readouterr().out
    code = "import sys, eval.main; sys.exit(bool({'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_each_file_of_the_metrics_folder_is_a_metric() -> None:
    from eval.metrics import names

    assert {"accuracy", "tsne"} <= set(names())
    assert not {"main", "record", "report", "results", "subject"} & set(names())
    assert json.dumps(Result().metrics) == "{}"
    assert RunDirectory(Path("nowhere")).exported_weights() == {}


# --- the distance of the domains


def test_proxy_distance_is_zero_for_equal_domains_and_two_for_domains_apart() -> None:
    random = np.random.RandomState(0)
    one, two = random.normal(size=(2, 400, 5)).astype(np.float32)
    assert abs(proxy_distance.proxy_distance(one, two)) < 0.25
    assert proxy_distance.proxy_distance(one, two + 100) == 2
    # Two normal densities a distance 2 apart: the best line errs with probability Phi(-1).
    apart = proxy_distance.proxy_distance(one[:, :1], two[:, :1] + 2)
    assert apart == pytest.approx(2 * (1 - 2 * stats.norm.cdf(-1)), abs=0.2)
    assert proxy_distance.proxy_distance(one, two[:30]) == pytest.approx(0, abs=0.8)


def test_proxy_distance_is_measured_on_the_features_of_the_last_weights(run: Path) -> None:
    assert main.main([str(run), "--metrics", "proxy_distance"]) == 0
    (measured,) = found(run)["metrics"].values()
    assert -0.3 < measured <= 2
    assert found(run)["provenance"]["proxy_a_distance"]["n"] == 2 * proxy_distance.IMAGES


def test_proxy_distance_needs_two_domains(plugin: Callable[..., Path]) -> None:
    lone = plugin("predict", "features")
    assert main.main([str(lone), "--metrics", "proxy_distance"]) == 2
    assert "proxy_distance compares two domains, this trial has one; leave it out" in failure(lone)
