"""What a preview costs: the time of one look against that of training steps, per method.

python tests/benchmarks/preview.py --every 500 --steps 60
"""

import argparse
import statistics
import time

import torch
from accelerate import Accelerator

import models
from models.base import DataSpec
from trainer.config.resolve import resolve
from trainer.config.schema import Train
from trainer.data.batches import Batches, prefetch
from trainer.data.cache import data_root, load, stage
from trainer.loop import Trainer
from trainer.preview import Preview

HORIZON = 100_000  # steps of the schedules
TRIALS: dict[str, dict[str, object]] = {
    "dann": {"source": "mnist5k", "target": "mnistm5k"},
    "dcgan": {"dataset": "mnistm5k", "size": 32},
    "vae": {"dataset": "mnistm5k", "size": 32},
    "ddpm": {"dataset": "mnistm5k"},
}


def measure(name: str, data: dict[str, object], steps: int, accelerator: Accelerator) -> tuple[float, float, float]:
    """Return seconds of a step, of a step with its gradient norm, and of a look, medians."""
    config = resolve({"name": name, "method": name, "data": data, "train": {"preview_every": 1}}, name)
    root, form = data_root(None), config.data.form()
    for dataset in config.data.datasets().values():
        stage(dataset, root, form=form)
    arrays = {domain: load(d, "train", root, form=form) for domain, d in config.data.datasets().items()}
    trainers = []
    for log_every in (HORIZON, 1):  # the gradient norm is computed before each line of the log
        method = models.load(name)(DataSpec(*config.data.shape()), **config.model_arguments())
        batches = Batches(arrays, method.reads, config.train.batch_size, 0, 0, 1, accelerator.device)
        trainer = Trainer(method, accelerator, Train(steps=HORIZON, log_every=log_every))
        trainers.append((trainer, trainer.fit(prefetch(batches, 0, HORIZON))))
    preview = Preview(config)
    is_cuda = accelerator.device.type == "cuda"
    wait = torch.cuda.synchronize if is_cuda else lambda: None
    clock = time.perf_counter if is_cuda else time.process_time  # which other programs on the machine do not disturb

    def seconds(action: object, *arguments: object) -> float:
        wait()
        began = clock()
        action(*arguments)  # type: ignore[operator]
        wait()
        return clock() - began

    for trainer, loop in trainers:
        next(loop)
        preview.look(trainer)
    rounds = [[seconds(next, loop) for _, loop in trainers] for _ in range(steps)]
    plain, watched = (statistics.median(column) for column in zip(*rounds, strict=True))
    return plain, watched, statistics.median(seconds(preview.look, trainers[0][0]) for _ in range(5))


def main() -> None:
    """Print the cost of previews and of gradient norms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=500, help="train.preview_every")
    parser.add_argument("--log-every", type=int, default=50, help="train.log_every")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--methods", nargs="+", choices=TRIALS, default=list(TRIALS))
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    print(f"device {accelerator.device}, batch 64, {torch.get_num_threads()} threads; goal at most 2 %")
    for name in options.methods:
        step, watched, look = measure(name, TRIALS[name], options.steps, accelerator)
        preview = look / (options.every * step)
        norm = (watched - step) / (options.log_every * step)
        print(
            f"{name:>8}  step {1e3 * step:7.1f} ms  look {1e3 * look:7.1f} ms  previews every {options.every} steps "
            f"{100 * preview:5.2f} %  norms every {options.log_every} steps {100 * norm:5.2f} %"
        )


if __name__ == "__main__":
    main()
