"""Print a fingerprint of what each method trains: `python -m tests.fingerprints > before`, change the code, compare.

Every method trains for a few steps on fixed random batches, on one thread of the CPU, in float32 and with bfloat16
autocast. Two versions of the code that print the same lines on one machine train the same weights, bit for bit.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import models
from models.base import Batch, DataSpec, Sampler
from trainer.config.schema import Train
from trainer.loop import Trainer
from trainer.seeds import seed_torch

SPEC, STEPS, BATCH = DataSpec(3, 32, 10), 6, 8


def batches(name: str) -> Iterator[Batch]:
    """Yield batches that are a pure function of the step."""
    for step in range(STEPS):
        generator, batch = torch.Generator().manual_seed(step), {}
        for key in models.signature(name).reads:
            if key.endswith("labels"):
                batch[key] = torch.randint(SPEC.classes, (BATCH,), generator=generator)
            else:
                batch[key] = torch.rand(BATCH, SPEC.channels, SPEC.size, SPEC.size, generator=generator) * 2 - 1
        yield batch


def fingerprint(name: str, precision: str) -> str:
    """Train a method, use its capabilities, and return a hash of all results."""
    AcceleratorState._reset_state(True)
    seed_torch(0, "weights")
    narrow = {"width": 8} if any(h.name == "width" for h in models.signature(name).hyperparameters) else {}
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    train = Train(steps=STEPS, batch_size=BATCH, micro_batches=2)
    trainer = Trainer(models.load(name)(SPEC, **narrow), accelerator, train)
    for _ in trainer.fit(batches(name)):
        pass
    terms, digest = trainer.settle(), hashlib.sha256()
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        trainer.save(folder)
        trainer.export(folder / "exported.safetensors")
        for file in ("method.safetensors", "averages.safetensors", "exported.safetensors"):
            digest.update((folder / file).read_bytes())
    digest.update(json.dumps(terms, sort_keys=True).encode())
    method = trainer.method.eval()
    seed_torch(0, "samples", 0)
    with torch.inference_mode():
        images = next(value for key, value in next(batches(name)).items() if "images" in key)
        for capability in ("predict", "features", "reconstruct"):
            if hasattr(method, capability):
                digest.update(getattr(method, capability)(images).float().numpy().tobytes())
        if isinstance(method, Sampler):
            options: dict[str, Any] = {"steps": 5} if hasattr(method, "timesteps") else {}
            samples = method.sample(4, **options)
            digest.update(samples.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method_name in models.names():
        for mode in ("no", "bf16"):
            print(method_name, mode, fingerprint(method_name, mode), flush=True)
