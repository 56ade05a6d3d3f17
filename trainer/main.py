"""Train one trial: `accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5`, and what every job runs.

Start and resume are the same command: the run directory is the state.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint import CheckpointError, clear_scraps, newest
from trainer.checkpoint import save as save_checkpoint
from trainer.config import Config, ConfigError, check_divides, resolve
from trainer.data.registry import DataError
from trainer.document import read
from trainer.lock import LOOK, superseded, take
from trainer.run import Run, write_json
from trainer.stop import StopRequest

BAD_INPUT = (ConfigError, DataError, CheckpointError)
EXAMPLES = """examples:
  accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5 train.steps=500
  accelerate launch --num_processes 2 trainer/main.py sweeps/dann.yaml train.precision=bf16
  python trainer/main.py logs/dann/dann,gamma=5,seed=0-1a2b3c4d      # start, or go on with, that trial"""


class Busy(ConfigError):
    """Another process trains this run: it is to be left in peace."""


def main(arguments: list[str] | None = None) -> int:
    """Train the trial that the command line names; return the exit code: 0 done or stopped, 2 bad input."""
    stop = StopRequest()
    parser = argparse.ArgumentParser(
        prog="trainer/main.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a YAML (its own settings, without its axes) or a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    # Not --logs: torchrun would take that for an abbreviation of an option of its own.
    parser.add_argument("--runs", type=Path, default=Path("logs"), help="where run directories lie (default: logs)")
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        run, config = locate(options.path, options.overrides, options.runs, write=rank == 0)
    except BAD_INPUT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    attempt = os.environ.get("TURNOUT_ATTEMPT", "direct")
    try:
        train(run, config, stop, attempt)
    except Busy as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if superseded(run, attempt):
            print(f"{run.name}: a newer attempt has taken over; {attempt} leaves", file=sys.stderr)
            return 0
        name = f"failed.{attempt}.json" if rank == 0 else f"failed.{attempt}.rank{rank}.json"
        what = str(error) if isinstance(error, BAD_INPUT) else f"{type(error).__name__}: {error}"
        write_json(run / name, {"error": what, "attempt": attempt, "rank": rank, "time": time.time()})
        if not isinstance(error, BAD_INPUT):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def locate(path: Path, overrides: list[str], runs: Path, write: bool) -> tuple[Path, Config]:
    """The run directory and the config of the trial that the command line names; ConfigError."""
    run = path.parent if path.name == "config.yaml" else path
    if (run / "config.yaml").exists():
        if overrides:
            raise ConfigError(f"{run}: {overrides[0]}: a run keeps its config; give the sweep file to change a setting")
        return run, resolve(read(run / "config.yaml"), str(run / "config.yaml"))
    from jobs.sweep import place, single

    trial = single(path, overrides)
    return place(runs / trial.config.name, [trial], write)[0], trial.config


def train(run: Path, config: Config, stop: StopRequest, attempt: str) -> None:
    """Bring a run from where it is to its last step, or to a stop at a step boundary."""
    if (run / "done").exists():
        print(f"{run.name}: done already", file=sys.stderr)
        return
    stop_file = run / f"stop.{attempt}"
    stop.watch(stop_file)

    import torch
    from accelerate import Accelerator

    import models
    from models.base import DataSpec
    from trainer.data.batches import Batches, prefetch
    from trainer.data.cache import data_root, load, stage
    from trainer.log import Log
    from trainer.loop import Trainer, seed

    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(f"{run}: train.precision: 'fp16' needs a GPU; choose bf16 or no")
    accelerator = Accelerator(mixed_precision=config.train.precision, cpu=not torch.cuda.is_available())
    main_process, world = accelerator.is_main_process, accelerator.num_processes
    try:
        check_divides(config.train.batch_size, world * config.train.micro_batches)
    except ValueError as error:
        raise ConfigError(f"{run}: {error}") from None
    lock = take(run, attempt) if main_process else None
    if not accelerator.reduce(torch.tensor(float(lock is not None), device=accelerator.device)).item():
        status = Run(run).status()
        raise Busy(
            f"{run}: process {status.get('pid')} on {status.get('host')} trains it already; wait for it or stop it"
        )
    channels, size, classes = config.data.shape()
    root = data_root(config.data.root)
    if main_process:
        for pattern in ("failed.*", "stopped.*", "stop.*", ".rendezvous.*"):  # of former attempts
            for marker in run.glob(pattern):
                if marker != stop_file:
                    marker.unlink(missing_ok=True)
        clear_scraps(run)
        for name in config.data.sets().values():
            stage(name, root, size, channels)
    accelerator.wait_for_everyone()

    seed(config.train.seed, "weights")
    method = models.load(config.method)(DataSpec(channels, size, classes), **config.model)
    trainer = Trainer(method, accelerator, config.train)
    arrays = {domain: load(name, "train", root, size, channels) for domain, name in config.data.sets().items()}
    batches = Batches(
        arrays,
        method.reads,
        config.train.batch_size,
        config.train.seed,
        accelerator.process_index,
        world,
        accelerator.device,
    )
    say = (lambda line: print(line, file=sys.stderr, flush=True)) if main_process else (lambda line: None)
    if found := newest(run, config.identity(), say):
        trainer.load(found)
        say(f"{run.name}: goes on from step {trainer.step}")
    log = Log(run, trainer.step, config.train.steps, attempt) if main_process else None
    # Asking the other processes goes over the CPU, so that no step waits for the GPU.
    group = torch.distributed.new_group(backend="gloo") if world > 1 else None

    def save() -> None:
        trainer.settle()
        if lock:
            save_checkpoint(run, trainer.step, config.identity(), trainer.save, lock.check)
        accelerator.wait_for_everyone()

    state = "done"
    try:
        for step in trainer.fit(prefetch(batches, trainer.step, config.train.steps)):
            last = step == config.train.steps
            if lock:
                lock.check(LOOK)
            if step % config.train.log_every == 0 or last:
                rows = trainer.settle()
                if log:
                    log.line(step, rows)
                trainer.rows = {}
            if log:
                log.beat(step)
            every = config.train.export_every
            if last or (every and step % every == 0):
                trainer.settle()
                if lock:
                    export(run, step, trainer.export, lock.check)
            if last:
                break
            if stop.agreed(group):
                save()
                state = "stopped"
                break
            if step % config.train.checkpoint_every == 0:
                save()
    except Exception as error:
        if log and not superseded(run, attempt):
            log.close(trainer.step, "failed", error=str(error))
        raise
    if log:
        log.close(trainer.step, state)
        marker = run / ("done" if state == "done" else f"stopped.{attempt}.json")
        write_json(marker, {"step": trainer.step, "attempt": attempt, "time": time.time()})
        stop_file.unlink(missing_ok=True)
        log.say(
            f"{run.name}: {state} at step {trainer.step}" + ("" if state == "done" else "; the same command goes on")
        )
    accelerator.wait_for_everyone()
    if lock:
        lock.close()
    if world > 1:
        accelerator.end_training()
        # All is on disk; the threads of gloo sometimes abort an interpreter that takes its time to leave.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def export(run: Path, step: int, write: Callable[[Path], None], check: Callable[[], None]) -> None:
    """Put weights/step-<step>.safetensors in place as a whole, after a last `check`."""
    final = run / "weights" / f"step-{step:06d}.safetensors"
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_suffix(".tmp")
    write(temporary)
    check()
    os.replace(temporary, final)


if __name__ == "__main__":
    sys.exit(main())
