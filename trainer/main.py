"""Train one trial: `accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5`, and what every job runs.

Start and resume are the same command: the run directory is the state.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from trainer.config.resolve import check_batch_size, load_config
from trainer.config.schema import Config
from trainer.config.sweep import load_single_trial
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.runs.atomic import write_json
from trainer.runs.checkpoints import clear_scraps, newest, refusal, synchronise
from trainer.runs.checkpoints import save as save_checkpoint
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import LOOK, Lock, superseded, take
from trainer.runs.placement import compute_written_identity, create_run_directories, locate_trials
from trainer.stop import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.data.batches import Batches
    from trainer.log import Log
    from trainer.loop import Trainer

BAD_INPUT = (ConfigError, DataError, CheckpointError)
EXAMPLES = """examples:
  accelerate launch trainer/main.py sweeps/dann.yaml model.gamma=5 train.steps=500
  accelerate launch --num_processes 2 trainer/main.py sweeps/dann.yaml train.precision=bf16
  python trainer/main.py logs/dann/dann,gamma=5,seed=0-1a2b3c4d      # start, or go on with, that trial"""


class Busy(ConfigError):
    """Another process trains this run: it is to be left in peace."""


def main(arguments: list[str] | None = None) -> int:
    """Train the trial that the command line names; return its exit code: 0 ended, 1 superseded, 2 bad input."""
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
            return 1  # as a failure, so that torchrun does not wait for the others
        name = f"failed.{attempt}.json" if rank == 0 else f"failed.{attempt}.rank{rank}.json"
        what = str(error) if isinstance(error, BAD_INPUT) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # on a full disk it may not find room; then the log alone says why
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
        return run, load_config(run / "config.yaml")
    trial = load_single_trial(path, overrides)
    find = create_run_directories if write else locate_trials
    return find(runs / trial.config.name, [trial])[0], trial.config


def train(run: Path, config: Config, stop: StopRequest, attempt: str) -> None:
    """Bring a run from where it is to its last step, or to a stop at a step boundary."""
    if (run / "done").exists():
        print(f"{run.name}: done already", file=sys.stderr)
        return
    if attempt == "direct":  # a name that all runs by hand share
        (run / f"stop.{attempt}").unlink(missing_ok=True)
    stop.watch(run / f"stop.{attempt}")

    import torch  # takes seconds: bad input has been refused by now, and no signal is lost

    accelerator = join(run, config)
    main_process, world = accelerator.is_main_process, accelerator.num_processes
    lock = take(run, attempt) if main_process else None
    if not accelerator.reduce(torch.tensor(float(lock is not None), device=accelerator.device)).item():
        status = RunDirectory(run).status()
        raise Busy(f"{run}: process {status.get('pid')} on {status.get('host')} trains it; wait for it or stop it")
    identity = ""  # of the main process's checkpoints
    if lock:
        lock.watch()
        clear(run, attempt)
        identity = compute_written_identity(run)
    trainer, batches = build(run, config, accelerator)
    resume(run, {config.identity(), identity}, trainer)
    log = None
    if lock:
        from trainer.log import Log

        log = Log(run, trainer.step, config.train.steps, attempt, lock.check)
    try:
        finished = work(run, config, identity, trainer, batches, stop, lock, log)
    except Exception as error:
        with suppress(OSError):  # that of a full disk must not take the place of the first one
            if log and not superseded(run, attempt):
                log.close(trainer.step, "failed", error=str(error))
        raise
    if log:
        log.close(trainer.step, "done" if finished else "stopped")
        marker = run / ("done" if finished else f"stopped.{attempt}.json")
        write_json(marker, {"step": trainer.step, "attempt": attempt, "time": time.time()})
        (run / f"stop.{attempt}").unlink(missing_ok=True)
        said = (
            f"done at step {trainer.step}" if finished else f"stopped at step {trainer.step}; the same command goes on"
        )
        log.say(f"{run.name}: {said}")
    accelerator.wait_for_everyone()
    if lock:
        lock.close()
    if world > 1:
        accelerator.end_training()
        # All is on disk; the threads of gloo sometimes abort an interpreter that takes its time to leave.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def join(run: Path, config: Config) -> "Accelerator":
    """Join the group of processes that was launched; ConfigError where this machine or their number does not fit."""
    import torch
    from accelerate import Accelerator

    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(f"{run}: train.precision: 'fp16' needs a GPU; choose bf16 or no")
    accelerator = Accelerator(mixed_precision=config.train.precision, cpu=not torch.cuda.is_available())
    try:
        check_batch_size(config.train.batch_size, accelerator.num_processes * config.train.micro_batches)
    except ValueError as error:
        raise ConfigError(f"{run}: {error}") from None
    return accelerator


def clear(run: Path, attempt: str) -> None:
    """Remove the markers and scraps of former attempts."""
    for pattern in ("failed.*", "stopped.*", "stop.*", ".rendezvous.*"):
        for marker in run.glob(pattern):
            if marker.name != f"stop.{attempt}":
                marker.unlink(missing_ok=True)
    clear_scraps(run)


def build(run: Path, config: Config, accelerator: "Accelerator") -> "tuple[Trainer, Batches]":
    """The method in training and its batches, as at step 0; ConfigError or DataError where they cannot be had."""
    import models
    from models.base import DataSpec
    from trainer.data.batches import Batches
    from trainer.data.cache import data_root, load, stage
    from trainer.loop import Trainer
    from trainer.seeds import seed_torch

    channels, size, classes = config.data.shape()
    root, sets = data_root(config.data.root), config.data.datasets()
    for name in sets.values() if accelerator.is_main_process else ():
        stage(name, root, size, channels)
    accelerator.wait_for_everyone()
    seed_torch(config.train.seed, "weights")
    try:
        method = models.load(config.method)(DataSpec(channels, size, classes), **config.model_arguments())
    except ValueError as error:
        raise ConfigError(f"{run}: model: {error}") from None
    arrays = {domain: load(name, "train", root, size, channels) for domain, name in sets.items()}
    batches = Batches(
        arrays,
        method.reads,
        config.train.batch_size,
        config.train.seed,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        balanced=config.data.balanced,
        jitter=config.data.jitter,
        flip=config.data.flip,
    )
    return Trainer(method, accelerator, config.train), batches


def resume(run: Path, identities: set[str], trainer: "Trainer") -> None:
    """Take up the newest intact checkpoint, if there is one; the main process chooses it for all."""
    from accelerate.utils import broadcast_object_list

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    main_process = trainer.accelerator.is_main_process
    (found,) = broadcast_object_list([newest(run, identities, say) if main_process else None])
    if found:
        trainer.load(found)
        if main_process:
            say(f"{run.name}: goes on from step {trainer.step}")


def work(
    run: Path,
    config: Config,
    identity: str,
    trainer: "Trainer",
    batches: "Batches",
    stop: StopRequest,
    lock: Lock | None,
    log: "Log | None",
) -> bool:
    """Train, log, save and export; whether the last step was reached. Only the main process has a lock and a log."""
    import torch

    from trainer.data.batches import prefetch

    # Asking the other processes goes over the CPU, so that no step waits for the GPU.
    group = torch.distributed.new_group(backend="gloo") if trainer.accelerator.num_processes > 1 else None

    def save() -> None:
        trainer.settle()  # no state after a loss that is not finite is kept
        if lock:
            save_checkpoint(run, trainer.step, identity, trainer.save, lock.check)
        trainer.accelerator.wait_for_everyone()

    every = config.train
    for step in trainer.fit(prefetch(batches, trainer.step, every.steps)):
        last = step == every.steps
        if lock:
            lock.check(LOOK)
        if step % every.log_every == 0 or last:
            rows = trainer.settle()
            if log:
                log.line(step, rows)
            trainer.rows = {}
        if log:
            log.beat(step)
        if last or (every.export_every and step % every.export_every == 0):
            trainer.settle()
            if lock:
                export(run, step, trainer.export, lock.check)
        if not last and stop.agreed(group):
            save()
            return False
        if not last and step % every.checkpoint_every == 0:
            save()
    return True


def export(run: Path, step: int, write: Callable[[Path], None], check: Callable[[], None]) -> None:
    """Put weights/step-<step>.safetensors in place whole, after a last `check`. CheckpointError if the disk refuses."""
    final = run / "weights" / f"step-{step:06d}.safetensors"
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid4().hex[:8]}.tmp")  # not that of a superseded attempt
    try:
        write(temporary)
        synchronise(temporary)
        check()
        os.replace(temporary, final)
        synchronise(final.parent)
    except Exception as error:
        if not (reason := refusal(error)):
            raise
        raise CheckpointError(
            f"{final}: weights not written: {reason}; free space there and run again; the same command goes on"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
