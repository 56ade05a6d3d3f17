"""What a training step of each method costs at the size of its sweep file: ratios of loops that take turns in one run.

    python tests/benchmarks/steps.py                                   # the trainer against a bare loop, every method
    python tests/benchmarks/steps.py dann vae --peers                  # beside Lightning's and Accelerate's usual loops
    python tests/benchmarks/steps.py dann --options bf16 fused compile # the trainer with options, against it without

All loops train the same networks by the same losses on the same random images; that the bare loop and the trainer end
at the same weights is checked first. No download, no data set. Lightning is needed for --peers only:
pip install lightning.
"""

import argparse
import importlib
import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import models  # noqa: E402
from models.base import DataSpec, Method  # noqa: E402
from trainer.config.schema import Config  # noqa: E402
from trainer.config.sweep import load_trials  # noqa: E402
from trainer.data.batches import Batches, prefetch  # noqa: E402
from trainer.data.cache import Arrays  # noqa: E402
from trainer.data.pixels import to_signed  # noqa: E402
from trainer.loop import Trainer, parameters, trainable  # noqa: E402
from trainer.seeds import seed_torch  # noqa: E402
from trainer.speed import set_options  # noqa: E402

HORIZON = 100_000  # steps of the schedules
IMAGES = 2000  # of each domain
ROUND = 2.0  # seconds of each loop in a round
OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "no"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "compile": {"precision": "no", "compile": True},
    "fused": {"precision": "no", "fused": True},
    "tf32": {"precision": "no", "tf32": True},
    "cudnn_benchmark": {"precision": "no", "cudnn_benchmark": True},
    "deterministic": {"precision": "no", "deterministic": True},
}


class Setting:
    """A method at the size of its sweep file, with random images."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.spec = DataSpec(*config.data.shape())
        random = np.random.default_rng(0)
        shape = (IMAGES, self.spec.size, self.spec.size, self.spec.channels)
        self.arrays = {
            domain: Arrays(
                random.integers(256, size=shape, dtype=np.uint8).transpose(0, 3, 1, 2),
                random.integers(self.spec.classes, size=IMAGES),
            )
            for domain in config.data.datasets()
        }

    def build(self) -> Method:
        """Return the method, always with the same weights."""
        seed_torch(0, "weights")
        return models.load(self.config.method)(self.spec, **self.config.model_arguments())

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the trainer's batches."""
        batches = Batches(self.arrays, self.build().reads, self.config.train.batch_size, 0, 0, 1, self.device)
        return prefetch(batches, 0, HORIZON)

    def trainer(self, **options: Any) -> Trainer:
        """Return a trainer with options of `train:`."""
        train = self.config.train.model_copy(update={"steps": HORIZON, **options})
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
        set_options(train, Path(tempfile.gettempdir(), "turnout-compiled"))
        return Trainer(self.build(), Accelerator(cpu=self.device.type == "cpu", mixed_precision=train.precision), train)


def find_configs(names: list[str]) -> dict[str, Config]:
    """Return method → config of the first trial of the sweep file that trains it, for all methods that have one."""
    configs: dict[str, Config] = {}
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        for trial in load_trials(file, []):
            configs.setdefault(trial.config.method, trial.config)
    return {name: configs[name] for name in names or sorted(configs)}


def step_bare(setting: Setting, seeded: bool = False) -> Iterator[Method]:
    """What a careful user would write by hand: no names, no checks, no log, no precision, no processes."""
    method = setting.build().to(setting.device).to(memory_format=torch.channels_last).train().requires_grad_(False)
    updates = method.updates()
    groups = [[*parameters(method, update).values()] for update in updates]
    optimizers = [update.optimizer(group) for update, group in zip(updates, groups, strict=True)]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    averages = {name: deepcopy(getattr(method, name)) for name in method.averaged}
    for step, batch in enumerate(setting.batches()):
        if seeded:
            seed_torch(setting.config.train.seed, step, 0)
        for update, group, optimizer, rate in zip(updates, groups, optimizers, rates, strict=True):
            if step % update.every:
                continue
            optimizer.param_groups[0]["lr"] = rate * update.schedule(step / HORIZON)
            with trainable(group):
                sum(update.loss(batch, step / HORIZON).values()).backward()  # type: ignore[union-attr]
            if setting.config.train.clip:
                torch.nn.utils.clip_grad_norm_(group, setting.config.train.clip)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, mean in averages.items():
                decay = min(method.averaged[name], (1 + step) / (10 + step))
                torch._foreach_lerp_([*mean.parameters()], [*getattr(method, name).parameters()], 1 - decay)
        yield method


def step_trainer(setting: Setting, **options: Any) -> Iterator[Method]:
    """Yield after each step of the trainer, with its log's reading of the losses every 50 steps."""
    trainer = setting.trainer(**options)
    for step in trainer.fit(setting.batches()):
        if step % 50 == 0:
            trainer.settle()
            trainer.terms_by_step = {}
        yield trainer.method


class Images(Dataset[dict[str, Tensor]]):
    """The images of all domains as tensors in memory, as most scripts hold them."""

    def __init__(self, setting: Setting, reads: tuple[str, ...]) -> None:
        self.tensors = {}
        for key in reads:
            domain, _, kind = key.rpartition("_")
            arrays = setting.arrays[domain]
            images = to_signed(torch.from_numpy(arrays.images))
            self.tensors[key] = images if kind == "images" else torch.from_numpy(arrays.labels)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: tensor[index] for key, tensor in self.tensors.items()}


def load_endlessly(loader: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a DataLoader, epoch after epoch."""
    for _ in count():
        yield from loader


def create_loader(setting: Setting, method: Method) -> "DataLoader[dict[str, Tensor]]":
    """Return the usual DataLoader."""
    return DataLoader(Images(setting, method.reads), setting.config.train.batch_size, shuffle=True, drop_last=True)


def step_accelerate(setting: Setting) -> Iterator[Method]:
    """The usual script with Accelerate: everything prepared, batches from a DataLoader."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=setting.device.type == "cpu")
    method = setting.build().to(accelerator.device).train().requires_grad_(False)
    updates = method.updates()
    groups = [[*parameters(method, update).values()] for update in updates]
    optimizers = [accelerator.prepare(u.optimizer(group)) for u, group in zip(updates, groups, strict=True)]
    for step, batch in enumerate(load_endlessly(accelerator.prepare(create_loader(setting, method)))):
        for update, group, optimizer in zip(updates, groups, optimizers, strict=True):
            if step % update.every == 0:
                with trainable(group):
                    accelerator.backward(sum(update.loss(batch, step / HORIZON).values()))
                optimizer.step()
                optimizer.zero_grad()
        yield method


def time_lightning(setting: Setting) -> Callable[[int], float]:
    """Return a function that trains some steps with Lightning and returns the milliseconds of each."""
    lightning: Any = importlib.import_module("lightning")
    logging.getLogger("lightning.pytorch").setLevel("ERROR")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.method, self.automatic_optimization = setting.build().train().requires_grad_(False), False
            self.list, self.times = self.method.updates(), list[float]()

        def configure_optimizers(self) -> Any:
            return [u.optimizer([*parameters(self.method, u).values()]) for u in self.list]

        def training_step(self, batch: dict[str, Tensor], number: int) -> None:
            optimizers = self.optimizers()
            for update, optimizer in zip(self.list, optimizers if len(self.list) > 1 else [optimizers], strict=True):
                if number % update.every == 0:
                    with trainable(parameters(self.method, update).values()):
                        self.manual_backward(sum(update.loss(batch, 0.0).values()))
                    optimizer.step()
                    optimizer.zero_grad()

        def on_train_batch_end(self, *_: Any) -> None:
            self.times.append(clock())

    loader, clock = create_loader(setting, setting.build()), choose_clock(setting.device)

    def run(steps: int) -> float:
        module = Module()
        accelerator = "cpu" if setting.device.type == "cpu" else "gpu"
        trainer = lightning.Trainer(
            max_epochs=-(-(steps + 1) // len(loader)), accelerator=accelerator, devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        return 1e3 * (module.times[-1] - module.times[0]) / (len(module.times) - 1)

    return run


def choose_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds: of the CPU, which other work on the machine does not disturb; or of a GPU's end."""

    def wait_and_read() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return time.process_time if device.type == "cpu" else wait_and_read


def time_loop(loop: Iterator[Method], device: torch.device) -> Callable[[int], float]:
    """Return a function that takes some steps of a loop and returns the milliseconds of each."""
    clock = choose_clock(device)

    def run(steps: int) -> float:
        began = clock()
        for _ in range(steps):
            next(loop)
        return 1e3 * (clock() - began) / steps

    return run


def check_same_weights(setting: Setting) -> None:
    """Check that the bare loop and the trainer train the same; AssertionError."""
    bare, trainer = step_bare(setting, seeded=True), step_trainer(setting, precision="no")
    for _ in range(2):
        ours, theirs = next(trainer).state_dict(), next(bare).state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=f"{setting.config.method}: {name}")


def measure(loops: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Return name of loop → milliseconds of a step, round by round; they take turns at being first."""
    warm = {name: [run(6) for _ in range(2)][-1] for name, run in loops.items()}
    steps = max(6, round(1e3 * ROUND / min(warm.values())))
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in list(loops)[:: 1 if number % 2 else -1]:
            times[name].append(loops[name](steps))
    return times


def compare(setting: Setting, options: argparse.Namespace) -> None:
    """Print a line of ratios of one method."""
    device = setting.device
    if options.options:
        names = ["fp32", *(name for name in options.options if name != "fp32")]
        loops = {name: time_loop(step_trainer(setting, **OPTIONS[name]), device) for name in names}
    else:
        check_same_weights(setting)
        loops = {"bare": time_loop(step_bare(setting), device)}
        loops["trainer"] = time_loop(step_trainer(setting, precision="no"), device)
    if options.peers:
        loops["accelerate"] = time_loop(step_accelerate(setting), device)
        if importlib.util.find_spec("lightning"):
            loops["lightning"] = time_lightning(setting)
    times = measure(loops, options.rounds)
    first, *others = times
    parts = [f"{first} {statistics.median(times[first]):.2f} ms = {1e3 / statistics.median(times[first]):.4g} steps/s"]
    for name in others:
        ratios = [value / base for value, base in zip(times[name], times[first], strict=True)]
        parts.append(f"{name} {statistics.median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})")
    print(f"{setting.config.method:<20}", "  ".join(parts), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Print the time of a step of each method, and of the other loops as a ratio of it: medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all that have a sweep file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", action="store_true", help="also time Lightning and the usual script with Accelerate")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, help="time the trainer with options instead")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no method after that")
    options = parser.parse_args(arguments)
    deadline, device = time.monotonic() + options.seconds, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU time, threads: {torch.get_num_threads()}"
    print(
        f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}; ratios of milliseconds per step, less is faster"
    )
    if options.peers and not importlib.util.find_spec("lightning"):
        print("lightning is not installed (pip install lightning): left out")
    warnings.simplefilter("ignore")
    for method, config in find_configs(options.methods).items():
        if time.monotonic() > deadline:
            print(f"{method:<20} not measured: {options.seconds:.0f} s are over")
            continue
        compare(Setting(config, device), options)


if __name__ == "__main__":
    main()
