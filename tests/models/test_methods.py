"""Check properties that every method of models/ must have, including methods added later."""

import copy
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import models
from models.base import (
    Batch,
    DataSpec,
    FeatureExtractor,
    Method,
    Predictor,
    Reconstructor,
    Sampler,
    StepwiseSampler,
    Update,
)
from models.types import Share
from tests.processes import BATCH, SPEC, STEPS, batches, build, draws_noise, small
from trainer.config.schema import Train
from trainer.loop import Trainer, trainable
from trainer.seeds import seed_torch


def build_trainer(method: Method, **train: object) -> Trainer:
    settings = Train.model_validate({"steps": STEPS, "batch_size": BATCH, **train})
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision; tests try several
    return Trainer(method, Accelerator(cpu=True, mixed_precision=settings.precision), settings)


def read_first_batch(name: str) -> Batch:
    return next(batches(name, 0, 1))


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def states_are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(params=models.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_signature_read_from_source_matches_inspect(name: str) -> None:
    import inspect

    real = list(inspect.signature(models.load(name)).parameters.values())[1:]
    read = models.signature(name)
    assert [(p.name, p.default) for p in real] == [(h.name, h.default) for h in read.hyperparameters]
    method = models.load(name)
    assert (method.reads, method.conditional, method.role) == (read.reads, read.conditional, read.role)
    assert read.summary.endswith(".")
    assert "(" in read.summary or "only" in read.summary.lower()  # a paper, or a bound


@pytest.mark.parametrize("size", [28, 32])
def test_capabilities_return_the_expected_shapes_and_dtypes(name: str, size: int) -> None:
    spec = DataSpec(channels=3, size=size, classes=7)
    method = small(name, spec).eval()
    images = torch.rand(5, 3, size, size) * 2 - 1
    capabilities = 0
    if predict := getattr(method, "predict", None):
        logits, capabilities = predict(images), capabilities + 1
        assert logits.shape == (5, 7)
        assert logits.dtype == torch.float32
    if features := getattr(method, "features", None):
        vectors, capabilities = features(images), capabilities + 1
        assert vectors.ndim == 2
        assert len(vectors) == 5
    if sample := getattr(method, "sample", None):
        samples, capabilities = sample(4), capabilities + 1
        assert samples.shape == (4, 3, size, size)
        assert samples.abs().max() <= 1
    if reconstruct := getattr(method, "reconstruct", None):
        reconstructions, capabilities = reconstruct(images), capabilities + 1
        assert reconstructions.shape == images.shape
    assert capabilities, "a method without any capability cannot be evaluated"


def test_update_changes_exactly_the_networks_it_trains(name: str) -> None:
    # Without batch norm: before it, the gradient of a bias is zero but for rounding.
    training = build_trainer(build(name, independent=True))
    batch = read_first_batch(name)
    for update in training.updates:
        before = copy_state(training.method)
        seed_torch(0)
        training.apply(update, batch)
        after = copy_state(training.method)
        prefixes = tuple(f"{network}." for network in update.trains)
        for key, parameter in training.method.named_parameters():
            changed = not torch.equal(before[key], after[key])
            assert changed == key.startswith(prefixes), f"{update.name}: {key}"
            assert not parameter.requires_grad
            assert parameter.grad is None


def test_losses_are_named_finite_scalars(name: str) -> None:
    training = build_trainer(build(name, independent=False))
    for update in training.updates:
        for term, loss in update.loss(read_first_batch(name), 0.5).items():
            assert term.isidentifier()
            assert loss.shape == ()
            assert loss.isfinite()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_each_update_decreases_its_own_loss(name: str, precision: str) -> None:
    """Repeat one update on one batch with the same noise, while the other networks stay fixed."""
    batch = read_first_batch(name)
    for number in range(len(build(name, independent=False).updates())):
        training = build_trainer(build(name, independent=False), precision=precision, steps=100)
        update = training.updates[number]
        sums = []
        for _ in range(30):
            seed_torch(0)
            with trainable(training.parameters[update.name].values()), training.accelerator.autocast():
                terms = update.loss(batch, 0.0)  # at progress 0 an adversarial term in the loss has no weight yet
            sums.append(sum(term.item() for term in terms.values() if term.requires_grad))
            seed_torch(0)
            training.apply(update, batch)
            if sums[-1] < sums[0] - 0.02 * abs(sums[0]):  # clearly
                break
        assert sums[-1] < sums[0] - 0.005 * abs(sums[0]), f"{update.name}: {sums}"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_training_is_bit_identical_to_uninterrupted_training(name: str, precision: str, tmp_path: Path) -> None:
    whole = build_trainer(build(name, independent=False), precision=precision)
    for step in whole.fit(batches(name, 0, 1)):
        if step in (1, 2, 4):
            whole.settle()
            (tmp_path / str(step)).mkdir()
            whole.save(tmp_path / str(step))
    rows = whole.settle()

    for stop_at in (1, 2, 4):
        torch.manual_seed(12345)  # the state of the random generator before must not matter
        resumed = build_trainer(small(name, SPEC), precision=precision)
        resumed.load(tmp_path / str(stop_at))
        assert resumed.step == stop_at
        for _ in resumed.fit(islice(batches(name, 0, 1), stop_at, None)):
            pass
        assert states_are_equal(copy_state(whole.method), copy_state(resumed.method))
        assert states_are_equal(copy_state(whole.averages), copy_state(resumed.averages))
        assert resumed.settle() == rows
        for a, b in zip(whole.optimizers.values(), resumed.optimizers.values(), strict=True):
            assert str(a.state_dict()) == str(b.state_dict())


@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches_match_the_full_batch(name: str, parts: int) -> None:
    """Compare methods without batch norm and noise, in float64, so that only rounding differs."""
    if draws_noise(name):
        pytest.skip(f"{name} draws separate noise for each micro-batch")
    results = []
    for micro_batches in (1, parts):
        method = build(name, independent=True).double()
        training = build_trainer(method, micro_batches=micro_batches)
        for batch in batches(name, 0, 1):
            double = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
            for update in training.updates:
                training.apply(update, double)
            training.step += 1
        results.append((copy_state(training.method), training.settle()))
    (one, rows_one), (many, rows_many) = results
    assert all(torch.allclose(one[key], many[key], rtol=1e-6, atol=1e-9) for key in one)
    for step, row in rows_one.items():
        assert row == pytest.approx(rows_many[step], rel=1e-5)


def test_adaptation_methods_do_not_read_target_labels(name: str) -> None:
    """The trainer gathers only the keys in `reads`; those of a method that reads both domains exclude target labels."""
    reads = models.signature(name).reads
    if "source_images" in reads and "target_images" in reads:
        assert "target_labels" not in reads


def test_parameter_that_gets_no_gradient_is_named() -> None:
    class Unreached(Method):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.ModuleDict({"used": nn.Linear(2, 1), "forgotten": nn.Linear(2, 1)})

        def updates(self) -> list[Update]:
            return [Update("fit", ("network",), self.loss, lambda p: torch.optim.SGD(p, 0.1))]

        def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
            return {"fit": self.network["used"](batch["images"]).mean()}

    training = build_trainer(Unreached())
    with pytest.raises(RuntimeError, match=r"'fit' trains network\.forgotten\.weight, but its loss does not depend"):
        training.apply(training.updates[0], {"images": torch.ones(4, 2)})


def test_every_sets_the_frequency_of_an_update() -> None:
    class Two(Method):
        def __init__(self) -> None:
            super().__init__()
            self.critic, self.generator = nn.Linear(2, 1), nn.Linear(2, 1)

        def updates(self) -> list[Update]:
            sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
            return [
                Update("critic", ("critic",), lambda b, p: {"a": self.critic(b["images"]).mean()}, sgd),
                Update(
                    "generator", ("generator",), lambda b, p: {"a": self.generator(b["images"]).mean()}, sgd, every=3
                ),
            ]

    training = build_trainer(Two())
    for _ in training.fit({"images": torch.ones(4, 2)} for _ in range(STEPS)):
        pass
    rows = training.settle()
    assert [step for step, row in rows.items() if "critic/a" in row] == list(range(STEPS))
    assert [step for step, row in rows.items() if "generator/a" in row] == [0, 3]


def test_an_update_shares_the_optimizer_of_an_earlier_one(tmp_path: Path) -> None:
    """Compare with one Adam by hand, whose moments of the first network see both losses; resume from a checkpoint."""

    class Shared(Method):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 1), nn.Linear(2, 1)

        def updates(self) -> list[Update]:
            both = lambda b, p: {"a": (self.first(b["images"]) - self.second(b["images"])).square().mean()}  # noqa: E731
            one = lambda b, p: {"a": 1e-3 * self.first(b["images"]).square().mean()}  # noqa: E731
            adam = lambda p: torch.optim.Adam(p, 0.1)  # noqa: E731
            return [
                Update("both", ("first", "second"), both, adam),
                Update("one", ("first",), one, adam, shares="both"),
            ]

    def create() -> Trainer:
        torch.manual_seed(0)
        return build_trainer(Shared())

    images = torch.randn(STEPS, 4, 2, generator=torch.Generator().manual_seed(0))
    whole, stopped, resumed = create(), create(), create()
    by_hand = copy.deepcopy(whole.method).requires_grad_(True)
    adam = torch.optim.Adam(by_hand.parameters(), 0.1)
    for step in whole.fit({"images": part} for part in images):
        for update in by_hand.updates():
            adam.zero_grad()
            update.loss({"images": images[step - 1]}, 0.0)["a"].backward()
            if update.name == "one":
                assert all(p.grad is None for p in by_hand.second.parameters())  # type: ignore[union-attr]
            adam.step()
    for key, value in by_hand.state_dict().items():
        torch.testing.assert_close(whole.method.state_dict()[key], value)
    for _ in stopped.fit({"images": part} for part in images[:2]):
        pass
    stopped.settle()
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    for _ in resumed.fit({"images": part} for part in images[2:]):
        pass
    assert states_are_equal(copy_state(whole.method), copy_state(resumed.method))


def test_moving_average_follows_its_warm_up_rule_and_is_exported(tmp_path: Path) -> None:
    """The decay warms up as min(decay, (1 + t) / (10 + t)); buffers are copied."""
    from safetensors.torch import load_file

    class Averaged(Method):
        averaged = {"network": 0.5}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.network = nn.Sequential(self.linear, nn.BatchNorm1d(2))

        def updates(self) -> list[Update]:
            loss = lambda b, p: {"fit": self.network(b["images"]).square().mean() + self.linear.weight.sum()}  # noqa: E731
            return [Update("fit", ("network",), loss, lambda p: torch.optim.SGD(p, 0.1))]

    training = build_trainer(Averaged())
    expected = {k: v.clone() for k, v in training.method.network.named_parameters()}  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    for step in training.fit({"images": torch.randn(4, 2, generator=generator)} for _ in range(STEPS)):
        t = step - 1
        decay = min(0.5, (1 + t) / (10 + t))
        for key, value in training.method.network.named_parameters():  # type: ignore[union-attr]
            expected[key] = decay * expected[key] + (1 - decay) * value
    training.export(tmp_path / "weights.safetensors")
    exported = load_file(tmp_path / "weights.safetensors")
    for key, value in expected.items():
        torch.testing.assert_close(exported[f"network.{key}"], value)
    assert not torch.equal(exported["network.0.weight"], training.method.state_dict()["network.0.weight"])
    for key, buffer in training.method.network.named_buffers():  # type: ignore[union-attr]
        assert torch.equal(exported[f"network.{key}"], buffer)


def test_clipping_limits_the_gradient_norm() -> None:
    norms = []

    class Steep(Method):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(3, 1)

        def updates(self) -> list[Update]:
            loss = lambda b, p: {"fit": 1e3 * self.network(b["images"]).mean()}  # noqa: E731
            return [Update("fit", ("network",), loss, lambda p: torch.optim.SGD(p, 1.0))]

    for clip in (0.0, 0.5):
        training = build_trainer(Steep(), clip=clip)
        before = copy.deepcopy(training.method)
        training.apply(training.updates[0], {"images": torch.ones(4, 3)})
        changes = [(a - b).flatten() for a, b in zip(before.parameters(), training.method.parameters(), strict=True)]
        norms.append(torch.cat(changes).norm().item())
    assert norms[0] == pytest.approx(2e3, rel=1e-3)  # 1e3 * |(1, 1, 1, 1)|
    assert norms[1] == pytest.approx(0.5, rel=1e-3)


def test_signature_supports_keyword_only_arguments_and_inheritance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read keyword-only hyperparameters, an annotated `reads`, another class in the file, a method that extends one."""
    (tmp_path / "odd.py").write_text(
        '"""Odd."""\n'
        "from models.base import Method\n"
        "from models.nets.layers import ReverseGradient\n"
        "class Helper(ReverseGradient): ...\n"
        "class Odd(Method):\n"
        "    reads: tuple[str, ...] = ('images',)\n"
        "    conditional = True\n"
        "    role = 'lower_bound'\n"
        "    def __init__(self, data, width: int = 3, *, lr: float = 0.5): ...  # rate\n"
    )
    (tmp_path / "odder.py").write_text('"""Odder."""\nfrom models.odd import Odd\nclass Odder(Odd): ...\n')
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    for name in ("odd", "odder"):
        signature = models.signature(name)
        assert (signature.reads, signature.conditional, signature.role) == (("images",), True, "lower_bound")
        assert [(h.name, h.default) for h in signature.hyperparameters] == [("width", 3), ("lr", 0.5)]


def test_methods_declare_roles_and_whether_they_are_conditional() -> None:
    signatures = {name: models.signature(name) for name in models.names()}
    assert {name for name, s in signatures.items() if s.conditional} == {"acgan", "ddpm", "edm", "flow_matching"}
    roles = {name: s.role for name, s in signatures.items() if s.role}
    assert roles == {"source_only": "lower_bound", "target_only": "upper_bound"}


def test_capabilities_are_recognised_by_their_protocols() -> None:
    expected = {
        "classifier": {Predictor, FeatureExtractor},
        "dann": {Predictor, FeatureExtractor},
        "dcgan": {Sampler},
        "ddpm": {Sampler, StepwiseSampler},
        "vae": {FeatureExtractor, Sampler, Reconstructor},
    }
    capabilities = (Predictor, FeatureExtractor, Sampler, Reconstructor, StepwiseSampler)
    for name, kinds in expected.items():
        method = small(name, SPEC)
        assert {kind for kind in capabilities if isinstance(method, kind)} == kinds, name
    ddpm = small("ddpm", SPEC)
    assert isinstance(ddpm, StepwiseSampler)
    assert ddpm.timesteps == 400


def test_annotations_may_use_aliases_of_the_file_and_of_shared_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aliased.py").write_text(
        '"""Aliased."""\n'
        "from typing import Annotated, Literal, TypeAlias\n"
        "import torch\n"
        "from pydantic import Field\n"
        "from models.base import Method\n"
        "from models.types import Share as Portion\n"
        "Schedule = Literal['ramp', 'constant']\n"
        "Name: TypeAlias = Literal['a']\n"
        "DEVICE = torch.device('cpu')\n"
        "class Aliased(Method):\n"
        "    def __init__(self, data, schedule: Schedule = 'ramp', name: Name = 'a', share: Portion = 0.5): ...\n"
    )
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    schedule, name, share = models.signature("aliased").hyperparameters
    assert (get_args(schedule.annotation), get_args(name.annotation)) == (("ramp", "constant"), ("a",))
    assert share.annotation is Share


def test_comment_on_any_line_of_an_argument_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "commented.py").write_text(
        '"""Commented."""\n'
        "from typing import Annotated, Literal\n"
        "from pydantic import Field\n"
        "from models.base import Method\n"
        "class Commented(Method):\n"
        "    def __init__(\n"
        "        self,\n"
        "        data,\n"
        "        first: Literal[\n"
        "            'a', 'b'\n"
        "        ] = 'a',  # after the last line\n"
        "        second: Literal[  # after the first line\n"
        "            'a', 'b'\n"
        "        ] = 'a',\n"
        "        third: Annotated[int, Field(ge=0, description='as a description')] = 3,\n"
        "        fourth: int = 4,\n"
        "        fifth: int = 5,  # of one line\n"
        "    ): ...\n"
    )
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    comments = [parameter.comment for parameter in models.signature("commented").hyperparameters]
    assert comments == ["after the last line", "after the first line", "as a description", "", "of one line"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("width", "give the hyperparameter a type"),
        ("width: Odd = 3", "'Odd' is not defined"),
        ("lr: float = f()", "use types of typing"),
    ],
)
def test_unreadable_argument_is_named(
    argument: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"from models.base import Method\nclass Bad(Method):\n    def __init__(self, data, {argument}): ...\n"
    (tmp_path / "bad.py").write_text(text)
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    with pytest.raises(TypeError) as refusal:
        models.signature("bad")
    assert f"models/bad.py:3: {argument.split(':')[0]}" in str(refusal.value)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("name", models.names())
def test_every_hyperparameter_has_a_comment(name: str) -> None:
    assert [h.name for h in models.signature(name).hyperparameters if not h.comment] == []
