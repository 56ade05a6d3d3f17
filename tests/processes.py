"""Trains every method for a few steps in each process of a group: `torchrun … -m tests.processes OUT`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

import models
from models.base import Batch, DataSpec, Method
from trainer.config.schema import Train
from trainer.loop import Trainer
from trainer.seeds import seed_torch

SPEC = DataSpec(channels=3, size=28, classes=10)
STEPS, BATCH = 5, 12


def batches(name: str, rank: int, world: int) -> Iterator[Batch]:
    """Yield this process's share of global batches that are a pure function of the step."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        batch = {}
        for key in models.signature(name).reads:
            if key.endswith("labels"):
                whole = torch.randint(SPEC.classes, (BATCH,), generator=generator)
            else:
                whole = torch.rand(BATCH, SPEC.channels, SPEC.size, SPEC.size, generator=generator) * 2 - 1
            batch[key] = whole.chunk(world)[rank]
        yield batch


def without_batch_statistics(module: nn.Module) -> nn.Module:
    """Replace layers that couple the samples of a batch or draw noise in each process."""
    for key, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, key, nn.GroupNorm(1, child.num_features))
        elif isinstance(child, nn.Dropout | nn.Dropout2d):
            setattr(module, key, nn.Identity())
        else:
            without_batch_statistics(child)
    return module


def small(name: str, spec: DataSpec) -> Method:
    """Return the method with its defaults, at its least width and with few sampling steps."""
    names = {h.name for h in models.signature(name).hyperparameters}
    settings = {"width": 8, "sampling_steps": 20}
    return models.load(name)(spec, **{key: value for key, value in settings.items() if key in names})


def build(name: str, independent: bool) -> Method:
    """Return the method, or one whose samples are independent of each other."""
    seed_torch(0, "weights")
    method = small(name, SPEC)
    if independent:
        without_batch_statistics(method)
    return method


def draws_noise(name: str) -> bool:
    """Return whether a training step draws random numbers."""
    method = build(name, independent=True)
    before = torch.get_rng_state()
    for update in method.updates():
        update.loss(next(batches(name, 0, 1)), 0.5)
    return not torch.equal(before, torch.get_rng_state())


def train(name: str, independent: bool, accelerator: Accelerator, out: Path) -> None:
    """Train, and save this rank's weights, averages and buffers."""
    rank, world = accelerator.process_index, accelerator.num_processes
    method = build(name, independent)
    if rank:  # the broadcast from rank 0 must undo this
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(1.0)
    training = Trainer(method, accelerator, Train(steps=STEPS, batch_size=BATCH))
    for _ in training.fit(batches(name, rank, world)):
        pass
    training.settle()
    kind = "independent" if independent else "whole"
    training.export(out / f"{name}.{kind}.{world}.{rank}.safetensors")
    save_file(
        {k: v.contiguous() for k, v in training.method.state_dict().items()}, out / f"{name}.{kind}.{world}.{rank}.raw"
    )


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    for method_name in models.names():
        for make_independent in (False, True):
            train(method_name, make_independent, accelerator, Path(sys.argv[1]))
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        accelerator.end_training()
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes abort an interpreter that takes its time to leave
