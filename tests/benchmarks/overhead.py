"""What the trainer costs: the same DANN step in a bare hand-written loop and in the trainer, alternating in one run.

python tests/benchmarks/overhead.py --rounds 9 --steps 60
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from models.base import DataSpec
from models.dann import DANN
from trainer.config.schema import Train
from trainer.data.batches import Batches, prefetch
from trainer.data.cache import data_root, load, stage
from trainer.data.dataset import Form
from trainer.loop import Trainer

SPEC = DataSpec(channels=3, size=28, classes=10)
HORIZON = 100_000  # steps of the schedules


def bare(
    batches: Iterator[dict[str, Tensor]], device: torch.device, gamma: float = 10.0, lr: float = 0.01
) -> Iterator[None]:
    """What a careful user would write by hand: no names, no checks, no log, no precision, no processes."""
    method = DANN(SPEC).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9)
    for step, batch in enumerate(batches):
        p = step / HORIZON
        strength = 2 / (1 + math.exp(-gamma * p)) - 1
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + 10 * p) ** -0.75
        source, target = method.extractor(batch["source_images"]), method.extractor(batch["target_images"])
        loss = F.cross_entropy(method.classifier(source), batch["source_labels"])
        loss = loss + method.domain_loss(source, 0, strength) + method.domain_loss(target, 1, strength)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def ours(batches: Iterator[dict[str, Tensor]], accelerator: Accelerator) -> Iterator[None]:
    """The trainer, with its log's reading of the losses every 50 steps."""
    trainer = Trainer(DANN(SPEC), accelerator, Train(steps=HORIZON))
    for step in trainer.fit(batches):
        if step % 50 == 0:
            trainer.settle()
            trainer.terms_by_step = {}
        yield


def timed(loop: Iterator[None], steps: int, wait: Callable[[], None]) -> float:
    """Milliseconds per step of the next `steps` iterations."""
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        next(loop)
    wait()
    return 1e3 * (time.perf_counter() - began) / steps


def main() -> None:
    """Print the time of a step in both, and the ratio round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60, help="of each loop in a round")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, root = accelerator.device, data_root(None)
    arrays = {}
    for domain, name in (("source", "mnist5k"), ("target", "mnistm5k")):
        stage(name, Path(root), Form(28, 3))
        arrays[domain] = load(name, "train", Path(root), Form(28, 3))

    def batches() -> Iterator[dict[str, Tensor]]:
        return prefetch(Batches(arrays, DANN.reads, options.batch_size, 0, 0, 1, device), 0, HORIZON)

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    loops = {"bare loop": bare(batches(), device), "trainer": ours(batches(), accelerator)}
    for loop in loops.values():
        timed(loop, 10, wait)  # warm up
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.rounds):
        # Take turns at being first, so that a drift of the machine's speed falls on both.
        for name in list(loops)[:: 1 if number % 2 else -1]:
            times[name].append(timed(loops[name], options.steps, wait))
    ratios = [ours_ms / bare_ms for ours_ms, bare_ms in zip(times["trainer"], times["bare loop"], strict=True)]
    print(f"device {device}, batch {options.batch_size} + {options.batch_size}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        print(f"{name:>10}  {statistics.median(values):7.2f} ms/step (median of {len(values)})")
    low, high = min(ratios), max(ratios)
    print(f"     ratio  {statistics.median(ratios):.3f} (median; {low:.3f} … {high:.3f}); goal at most 1.05")


if __name__ == "__main__":
    main()
