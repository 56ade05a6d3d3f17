"""One attempt at a trial: from the state of its run directory to the last step, or to a stop between two steps.

torch is imported inside the functions: it takes seconds, after bad input has been refused and signals are watched.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.runs import checkpoints
from trainer.runs.attempt import DIRECT, Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import persist
from trainer.runs.lock import CHECK_INTERVAL, Lock, is_superseded, take
from trainer.runs.placement import compute_written_identity
from trainer.stop import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.costs import Costs
    from trainer.data.batches import Batches
    from trainer.log import TrainingLog
    from trainer.loop import LossTerms, Trainer


class AlreadyTraining(ConfigError):
    """The trial is already being trained by another process."""


def train(run: RunDirectory, config: Config, stop: StopRequest, attempt: Attempt, until: int | None = None) -> None:
    """Train to the last step, or to a stop or the step `until`, and mark how it ended; AlreadyTraining."""
    if run.is_done():
        print(f"{run.name}: already done", file=sys.stderr)
        return
    if attempt == DIRECT:  # a name that all attempts by hand share
        run.stop_file(attempt).unlink(missing_ok=True)
    stop.watch(run.stop_file(attempt))
    from trainer.costs import Costs
    from trainer.parallel import count_devices, describe, join_processes

    accelerator = join_processes(run, config, attempt)
    lock = take_lock(run, attempt, accelerator)
    if lock:
        print(f"{run.name}: {describe(accelerator, config.train)}", file=sys.stderr, flush=True)
    identity = compute_written_identity(run) if lock else ""
    trainer, batches = build(run, config, accelerator)
    if not resume(run, {config.identity(), identity}, trainer):
        leave_processes(accelerator, lock)
        return
    if not trainer.step and config.train.init:
        from trainer.initial import load_initial

        line = load_initial(config.train.init, trainer, run.config_file)
        if lock:
            print(f"{run.name}: {line}", file=sys.stderr, flush=True)
    costs, log = Costs(count_devices(accelerator), trainer.step, run.status().get("costs", {})), None
    if lock:
        from trainer.log import TrainingLog

        log = TrainingLog(run, trainer.step, config.train.steps, attempt, lock.check, costs.total)
    end = min(until or config.train.steps, config.train.steps)
    session = Session(run, config, identity, trainer, batches, stop, lock, log, costs, end)
    try:
        finished = session.train()
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide the first error
            if log and not is_superseded(run, attempt):
                log.close(trainer.step, "failed", error=str(error))
        raise
    if log:
        log.close(trainer.step, "done" if finished else "stopped")
        mark = run.finish if finished else run.stop
        persist(lambda: mark(attempt, trainer.step), f"{run.path}: marker not written")
        if finished and not config.eval.metrics and not config.train.keep_checkpoints:
            checkpoints.remove_all(run)
        ending = "done at step {}" if finished else "stopped at step {}; rerun the same command to resume"
        log.print(f"{run.name}: {ending.format(trainer.step)}")
    leave_processes(accelerator, lock)


def take_lock(run: RunDirectory, attempt: Attempt, accelerator: "Accelerator") -> Lock | None:
    """Lock the run directory in the main process, for the whole group; AlreadyTraining if another process holds it."""
    import torch

    lock = take(run, attempt) if accelerator.is_main_process else None
    if not accelerator.reduce(torch.tensor(float(lock is not None), device=accelerator.device)).item():
        status = run.status()
        raise AlreadyTraining(
            f"{run.path}: already being trained by process {status.get('pid')} on {status.get('host')}; "
            "wait for it or stop it"
        )
    if lock:
        lock.watch()
        run.start(attempt)
    return lock


def build(run: RunDirectory, config: Config, accelerator: "Accelerator") -> "tuple[Trainer, Batches]":
    """Return the method in training and its batches, as at step 0; ConfigError or DataError where that fails."""
    import models
    from models.base import DataSpec
    from trainer.data.batches import Batches
    from trainer.data.cache import data_root, find, read, stage
    from trainer.data.local_copy import copy_split
    from trainer.loop import Trainer
    from trainer.seeds import seed_torch

    channels, size, classes = config.data.shape()
    root, datasets = data_root(config.data.root), config.data.datasets()
    form = config.data.form()
    for name in datasets.values() if accelerator.is_main_process else ():
        stage(name, root, form=form)
    if accelerator.is_main_process:
        record_data(run, config)
    accelerator.wait_for_everyone()
    seed_torch(config.train.seed, "weights")
    try:
        method = models.load(config.method)(DataSpec(channels, size, classes), **config.model_arguments())
    except ValueError as error:
        raise ConfigError(f"{run.path}: model: {error}") from None
    batches = Batches(
        {
            domain: read(
                copy_split(find(name, root, form), "train", config.data.copy_to),
                "train",
                config.data.class_order(domain),
            )
            for domain, name in datasets.items()
        },
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


def record_data(run: RunDirectory, config: Config) -> None:
    """Record what the trial is trained on; ConfigError if it has progressed on other data."""
    from trainer.data.provenance import describe_data, find_difference

    record = describe_data(config.data)
    difference = find_difference(run.data(), record)
    if difference and (run.latest_step() or run.exported_weights()):
        raise ConfigError(
            f"{run.path}: {difference} since the trial was started; restore the data, or remove this run directory to "
            "train on the new ones"
        )
    run.write_data(record)


def resume(run: RunDirectory, identities: set[str], trainer: "Trainer") -> bool:
    """Load the newest intact checkpoint of one of the identities, if there is one; the main process chooses it.

    Return False, without loading any, if the trial is done: an attempt on a lost node may have finished it and removed
    its checkpoints after this attempt had looked, but before it took the lock.
    """
    from accelerate.utils import broadcast_object_list

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    is_main = trainer.accelerator.is_main_process
    choice = [checkpoints.newest(run, identities, say), run.is_done()] if is_main else [None, False]
    checkpoint, done = broadcast_object_list(choice)
    if checkpoint and not done:
        trainer.load(checkpoint)
    if is_main and (checkpoint or done):
        say(f"{run.name}: " + ("already done" if done else f"resuming from step {trainer.step}"))
    return not done


def leave_processes(accelerator: "Accelerator", lock: Lock | None) -> None:
    """Release the lock once all processes have ended their work, and leave their group."""
    accelerator.wait_for_everyone()
    if lock:
        lock.close()
    if accelerator.num_processes > 1:
        accelerator.end_training()


def explain_batch_norm(steps: Iterator[int], run: RunDirectory) -> Iterator[int]:
    """Yield steps; ConfigError where batch norm gets a single image, which it cannot normalise."""
    try:
        yield from steps
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"{run.path}: train.batch_size: batch norm needs 2 or more images in each process and micro-batch; give a "
            "larger batch_size, or fewer processes or micro_batches"
        ) from None


@dataclass
class Session:
    """A trial in training. Only the main process has a lock and a log."""

    run: RunDirectory
    config: Config
    identity: str  # of checkpoints: that of config.yaml as it is written; the main process's only
    trainer: "Trainer"
    batches: "Batches"
    stop: StopRequest
    lock: Lock | None
    log: "TrainingLog | None"
    costs: "Costs"
    until: int  # step at which training ends: the last one, or that of a stop
    writer: checkpoints.Writer = field(default_factory=checkpoints.Writer)

    def train(self) -> bool:
        """Train, log, save and export, until all is on the disk; return whether the last step was reached."""
        with self.writer:
            return self.take_steps()

    def take_steps(self) -> bool:
        """Train as `train`, perhaps before the last checkpoint is written."""
        import torch

        from trainer.data.batches import prefetch

        train, trainer, costs, preview = self.config.train, self.trainer, self.costs, None
        if self.log and train.preview_every:
            from trainer.preview import Preview

            preview = Preview(self.config)
        # The processes agree on a stop over the CPU, so that no step waits for the GPU.
        group = torch.distributed.new_group(backend="gloo") if trainer.accelerator.num_processes > 1 else None
        costs.enter()
        batches = costs.iterate("data", prefetch(self.batches, trainer.step, self.until))
        for step in costs.iterate("updates", explain_batch_norm(trainer.fit(batches), self.run)):
            last = step == train.steps
            if self.lock:
                with suppress(OSError):  # a disk that fails for a moment; nothing is put in place meanwhile
                    self.lock.check(CHECK_INTERVAL)
            if step % train.log_every == 0 or last:
                self.write_line(step)
            if self.log:
                with costs.during("logging"):
                    if preview and (step % train.preview_every == 0 or last):
                        self.log.write_preview(step, *preview.look(trainer))
                    self.log.heartbeat(step)
            if step == self.until or (train.export_every and step % train.export_every == 0):
                self.export(step)
            if not last and (step == self.until or self.stop.agreed(group)):
                self.save()
                return False
            if train.keep_checkpoints if last else step % train.checkpoint_every == 0:
                self.save()
        if trainer.step < train.steps:  # an earlier attempt has reached `until`, perhaps without exporting
            self.export(trainer.step)
        return trainer.step == train.steps

    def write_line(self, step: int) -> None:
        """Log the loss terms since the last line."""
        terms = self.settle()
        if self.log:
            with self.costs.during("logging"):
                self.log.write_line(step, terms, self.trainer.monitor())
        self.trainer.terms_by_step = {}

    def save(self) -> None:
        """Write a checkpoint, never one after a loss that is not finite."""
        self.settle()
        with self.costs.during("checkpoints"):
            if self.lock and self.log:
                self.log.flush()  # a resumed training would not write these lines again
                later = self.config.train.async_checkpoints
                write = self.trainer.copy_save() if later else self.trainer.save
                save = partial(checkpoints.save, self.run, self.trainer.step, self.identity, write, self.lock.check)
                self.writer.submit(save) if later else save()
            self.trainer.accelerator.wait_for_everyone()

    def export(self, step: int) -> None:
        """Export weights for evaluation, never after a loss that is not finite."""
        self.settle()
        with self.costs.during("checkpoints"):
            if self.lock:
                checkpoints.export_weights(self.run, step, self.trainer.export, self.lock.check)

    def settle(self) -> "dict[int, LossTerms]":
        """Return the loss terms since the last line; the wait for the device belongs to the updates."""
        with self.costs.during("updates"):
            return self.trainer.settle()
