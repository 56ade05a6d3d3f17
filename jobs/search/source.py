"""The study as the source of a worker's tasks: its slots train to the next rung, measure there, and are told to go on.

What a trial needs next is read from its run directories and from the study each time, never remembered: so a trial that
was interrupted anywhere goes on from there, under whichever worker takes it.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from eval.record import needs_evaluation
from jobs.processes import Task
from jobs.search.study import DUPLICATE, RETRY, RUNS, Study, read_search
from jobs.search.summary import record_importance
from trainer.config.resolve import load_config
from trainer.errors import ConfigError
from trainer.runs import checkpoints
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import persist, say
from trainer.runs.lock import ClaimedRun, Lock, Superseded, owner, take
from trainer.runs.objective import read_objectives
from trainer.runs.placement import create_run_directory

MAX_DUPLICATES = 20  # settings in a row that were tried before, after which a space counts as exhausted


@dataclass
class Claim:
    """A trial of the study that this worker runs: one run directory for each seed."""

    number: int
    runs: list[RunDirectory]
    lock: Lock
    task: Task | None = None  # what runs of it now


class StudySource:
    """What slots take from a study: trials that were interrupted, then new ones, at last the evaluation of the best."""

    def __init__(self, sweep: Path, attempt: Attempt, processes: int = 1) -> None:
        """Open the study of a sweep's directory; ConfigError if there is none."""
        search = read_search(sweep)
        if search is None:
            raise ConfigError(f"{sweep}: has no search; submit a sweep file with search:")
        self.sweep, self.search, self.attempt, self.processes = sweep, search, attempt, processes
        self.study = Study(sweep, search)
        self.claims: dict[int, Claim] = {}
        self.left: set[int] = set()  # trials that the user has stopped, or that another attempt has taken over
        self.evaluated: set[str] = set()
        self.is_idle = False  # whether there is no task until one ends
        self.is_used_up = False  # whether the sampler only repeats settings, as in a small space

    def kinds(self) -> list[Task]:
        """Return a training and a measurement; nothing for a sampler that starts threads in this process."""
        is_threaded = self.search.options.sampler == "gp"  # computes with torch
        return [] if is_threaded else [Task("train", "", self.processes), Task("objective", "")]

    def take(self) -> Task | None:
        """Return the next task for a free slot; None if there is none until a task ends."""
        if self.is_idle:
            return None
        while claim := next((claim for claim in self.claims.values() if claim.task is None), None) or self.claim():
            claim.task = self.advance(claim)
            if claim.task:
                return claim.task
        task = self.find_evaluation()
        self.is_idle = task is None
        return task

    def end(self, task: Task, finished: bool) -> None:
        """Let the trial of a task go on, unless its training was stopped before its rung."""
        self.is_idle = False
        if claim := self.find_claim(task):
            claim.task = None
            if task.stage == "train" and not self.has_reached(task.run, int(task.arguments[1])):
                self.release(claim)

    def fail(self, task: Task, error: str) -> None:
        """Tell the study that the trial of a task has failed."""
        self.is_idle = False
        if claim := self.find_claim(task):
            self.tell(claim, state=TrialState.FAIL)
            self.release(claim)

    def rest(self) -> list[RunDirectory]:
        """Return a run directory of each trial of this worker, which goes on with them after a stop."""
        return [next((run for run in c.runs if not run.is_done()), c.runs[-1]) for c in self.claims.values()]

    def find_claim(self, task: Task) -> Claim | None:
        """Return the claim that a task is of; None for an evaluation."""
        return next((claim for claim in self.claims.values() if claim.task is task), None)

    def release(self, claim: Claim) -> None:
        """Let go of a trial, for good as far as this worker is concerned."""
        self.left.add(claim.number)
        del self.claims[claim.number]
        claim.lock.close()

    def claim(self) -> Claim | None:
        """Claim a trial of the study that no worker runs, else a new one; None if there is none."""
        with self.study.mutex:
            running = [t for t in self.study.trials(TrialState.RUNNING) if t.number not in {*self.claims, *self.left}]
            now, later = self.order(running)
            for trial in now:
                if claim := self.try_claim(trial.number):
                    return claim
            for _ in range(MAX_DUPLICATES):
                if self.is_over():
                    break
                if claim := self.try_claim(self.study.ask()):
                    return claim
            else:
                self.is_used_up = True
            return next((claim for trial in later if (claim := self.try_claim(trial.number))), None)

    def is_over(self) -> bool:
        """Return whether no further setting is to be tried."""
        return self.is_used_up or self.study.is_exhausted()

    def order(self, trials: list[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return the trials to claim at once, this job's own first, and those to leave as long as there are others.

        The latter have saved at the request of Slurm, which will restart their job.
        """
        own, killed, saved = list[FrozenTrial](), list[FrozenTrial](), list[FrozenTrial]()
        for trial in trials:
            runs = self.study.runs(trial)
            holder = owner(ClaimedRun(runs[0].path)) if runs else Attempt()
            if holder.job == self.attempt.job:
                own.append(trial)
            elif any(run.has_stopped(holder) for run in runs) and not holder.is_local:
                saved.append(trial)
            else:
                killed.append(trial)
        return own + killed, saved

    def try_claim(self, number: int) -> Claim | None:
        """Claim a trial, and create its run directories; None if another worker has it, or if it repeats one.

        The caller holds the study's mutex: of a trial without run directories, its worker was killed.
        """
        trial = self.study.open(number)
        self.study.complete(trial)
        if RUNS not in trial.user_attrs:
            try:
                trials = self.search.trials(trial.params)
            except ConfigError as error:
                say(f"trial {number}: {error}")
                self.study.tell(number, state=TrialState.FAIL)
                return None
            names = [t.name for t in trials]
            same = [t for t in self.study.trials() if t.user_attrs.get(RUNS) == names and t.state != TrialState.FAIL]
            if same and RETRY not in trial.user_attrs:
                trial.set_user_attr(DUPLICATE, same[0].number)
                self.study.tell(number, state=TrialState.FAIL)
                return None
            for planned in trials:
                create_run_directory(self.sweep / planned.name, planned)
            trial.set_user_attr(RUNS, names)
        runs = [RunDirectory(self.sweep / name) for name in trial.user_attrs[RUNS]]
        lock = take(ClaimedRun(runs[0].path), self.attempt)
        if lock is None:
            return None
        claim = self.claims[number] = Claim(number, runs, lock)
        return claim

    def advance(self, claim: Claim) -> Task | None:
        """Return what a trial needs next, if it goes on; otherwise tell the study and release it."""
        metric, direction, value = self.search.options.metric, self.search.options.direction or "", 0.0
        for rung in self.study.rungs:
            if any(self.is_beyond(run, rung) for run in claim.runs):
                continue  # trained by hand, without weights of this rung
            values = [read_objectives(run, metric).get(rung) for run in claim.runs]
            for run, measured in zip(claim.runs, values, strict=True):
                if measured is None and not self.has_reached(run, rung):
                    return Task("train", str(run.path), self.processes, arguments=("--until", str(rung)))
                if measured is None:
                    return Task("objective", str(run.path), arguments=(metric, str(rung), direction))
            value = fmean(v for v in values if v is not None)
            if self.should_prune(claim, rung, value):
                self.tell(claim, state=TrialState.PRUNED)
                for run in claim.runs:
                    persist(partial(run.prune, self.attempt, rung), f"{run.path}: marker not written")
                self.release(claim)
                return None
        self.tell(claim, value)
        for run in claim.runs:
            if not load_config(run.config_file).train.keep_checkpoints:
                checkpoints.remove_all(run)
        self.release(claim)
        return None

    def has_reached(self, run: RunDirectory, rung: int) -> bool:
        """Return whether a trial can be measured at a rung: it has stopped there, or is done."""
        return rung in run.exported_weights() and (rung < self.study.rungs[-1] or run.is_done())

    def is_beyond(self, run: RunDirectory, rung: int) -> bool:
        """Return whether a trial has passed a rung without exporting weights there."""
        passed = run.latest_step() > rung or run.is_done()
        return passed and rung < self.study.rungs[-1] and rung not in run.exported_weights()

    def should_prune(self, claim: Claim, rung: int, value: float) -> bool:
        """Report a value at a rung; return whether the trial is given up, unless it went beyond that rung before."""
        trial = self.study.frozen(claim.number)
        if trial.last_step is not None and trial.last_step > rung:
            return False
        decide = partial(self.study.should_prune, claim.number, rung, value)
        return persist(decide, f"{self.sweep}: study not written") and rung < self.study.rungs[-1]

    def tell(self, claim: Claim, value: float | None = None, state: TrialState = TrialState.COMPLETE) -> None:
        """Tell the study how a trial ended, unless a newer attempt has taken it over."""
        try:
            claim.lock.check()
        except Superseded as error:
            say(str(error))
            return
        persist(partial(self.study.tell, claim.number, value, state), f"{self.sweep}: study not written")

    def find_evaluation(self) -> Task | None:
        """Return the evaluation of a trial of the best setting, once every setting has been tried."""
        if self.claims or not self.is_over() or self.study.trials(TrialState.RUNNING):
            return None
        with suppress(OSError):  # it only informs
            record_importance(self.study)
        best = self.study.best()
        for run in self.study.runs(best) if best else ():
            if run.name not in self.evaluated and needs_evaluation(load_config(run.config_file), run):
                self.evaluated.add(run.name)
                return Task("eval", str(run.path))
        return None
