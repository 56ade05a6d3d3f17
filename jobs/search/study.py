"""The study of a search: Optuna's journal in the sweep's directory, which the slots of all workers share.

No process serves it. A file lock orders those that ask; the kernel releases it when its holder dies. A trial is
RUNNING in the journal until its end is told; the worker that runs it holds its claim, a lock in its run directory, so
that a trial which nobody holds is known to be interrupted.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from jobs.search import JOURNAL, SEARCH
from trainer.config.document import Document
from trainer.config.search import Search
from trainer.config.space import Dimension
from trainer.errors import ConfigError
from trainer.runs.atomic import read_json, write_json
from trainer.runs.attempt import Attempt
from trainer.runs.costs import read_costs
from trainer.runs.directory import RunDirectory

LOCK = ".study.lock"  # in the sweep's directory
RUNS, DUPLICATE, RETRY = "runs", "duplicate of", "retry of"  # attributes of a trial
BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

optuna.logging.set_verbosity(optuna.logging.WARNING)


class JournalLock(JournalFileOpenLock):
    """The lock of a journal: released by the kernel when its holder dies; removes a line that was cut short."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.lock = journal, FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        """Lock the journal for a writer."""
        self.lock.acquire()
        repair(self.journal)
        return True

    def release(self) -> None:
        """Let the next writer write."""
        self.lock.release()


def repair(journal: Path) -> None:
    """Cut off a last line without its end, which a killed process or a full disk has left: no reader has taken it."""
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class Study:
    """What is asked for settings, and told their values."""

    def __init__(self, sweep: Path, search: Search) -> None:
        """Open the study of a sweep's directory, or begin it; ConfigError if its journal is damaged."""
        self.sweep, self.search, self.rungs = sweep, search, search.rungs()
        self.mutex = FileLock(sweep / LOCK)
        self.hours: dict[str, float] = {}  # by run directory
        self.ended: set[int] = set()  # trials whose hours are final
        journal = sweep / JOURNAL
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
            pruner, sampler = create_pruner(search, self.rungs[-1]), self.create_sampler(0)
            if names := optuna.get_all_study_names(storage):  # opening it writes nothing, so that anybody may look
                self.optuna = optuna.load_study(study_name=names[0], storage=storage, pruner=pruner, sampler=sampler)
            else:
                self.optuna = optuna.create_study(
                    study_name=sweep.resolve().name,
                    storage=storage,
                    pruner=pruner,
                    sampler=sampler,
                    direction=search.options.direction,
                )
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{journal}: is damaged: {' '.join(str(error).split())}; move it and {SEARCH} away to search from the "
                "start: trials that were trained are not trained again"
            ) from None

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, or all, without duplicates of others."""
        trials = self.optuna.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if DUPLICATE not in trial.user_attrs]

    def frozen(self, number: int) -> FrozenTrial:
        """Return a trial as the journal has it now."""
        return self.optuna.get_trials(deepcopy=False)[number]

    def runs(self, trial: FrozenTrial) -> list[RunDirectory]:
        """Return the run directories of a trial, one for each seed; [] before they were created."""
        return [RunDirectory(self.sweep / name) for name in trial.user_attrs.get(RUNS, [])]

    def mark_pruned(self, attempt: Attempt) -> None:
        """Mark the run directories of pruned trials whose worker was killed before it did."""
        for trial in self.trials(TrialState.PRUNED):
            for run in self.runs(trial):
                if run.state() == "stopped":
                    run.prune(attempt, trial.last_step or 0)

    def count_asked(self) -> int:
        """Return how many settings were asked for: each counts once, however often it was tried."""
        return sum(RETRY not in trial.user_attrs for trial in self.trials(*BEGUN))

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the best value; None before the first."""
        sign = -1 if self.search.options.direction == "maximize" else 1
        return min(self.trials(TrialState.COMPLETE), key=lambda trial: sign * (trial.value or 0.0), default=None)

    def device_hours(self) -> float:
        """Return what the trainings have cost, as trainer.runs.costs measures it; those that ended are read once."""
        for trial in self.trials():
            names = [] if trial.number in self.ended else [run.name for run in self.runs(trial)]
            self.hours |= {name: read_costs(RunDirectory(self.sweep / name)).get("device_hours", 0.0) for name in names}
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self.ended.add(trial.number)
        return sum(self.hours.values())

    def is_spent(self) -> bool:
        """Return whether the budget of device-hours is used up."""
        hours = self.search.options.device_hours
        return hours is not None and self.device_hours() >= hours

    def count_fresh(self) -> int:
        """Return how many settings may still be asked for."""
        return 0 if self.is_spent() else max(0, self.search.options.most() - self.count_asked())

    def is_exhausted(self) -> bool:
        """Return whether no further setting may be asked for, not even one that waits."""
        return self.is_spent() or (not self.count_fresh() and not self.trials(TrialState.WAITING))

    def ask(self) -> int:
        """Return the number of a new trial, RUNNING and with all parameters; the caller holds `mutex`."""
        self.optuna.sampler = self.create_sampler(len(self.optuna.get_trials(deepcopy=False)))
        return self.complete(self.optuna.ask())

    def open(self, number: int) -> optuna.Trial:
        """Return a trial to report to."""
        self.optuna.sampler = self.create_sampler(number)
        return optuna.Trial(self.optuna, self.frozen(number)._trial_id)

    def complete(self, trial: optuna.Trial) -> int:
        """Choose those parameters of a trial that it does not have yet; return its number."""
        chosen: Document = {}
        while names := [name for name in self.search.dimensions(chosen) if name not in chosen]:
            dimensions = self.search.dimensions(chosen)
            chosen |= {name: suggest(trial, name, to_distribution(dimensions[name])) for name in names}
        return trial.number

    def should_prune(self, number: int, rung: int, value: float) -> bool:
        """Report a value at a rung, once; return whether the trial is to be given up there."""
        trial = self.open(number)
        if rung not in self.frozen(number).intermediate_values:
            trial.report(value, rung)
        return trial.should_prune()

    def tell(self, number: int, value: float | None = None, state: TrialState = TrialState.COMPLETE) -> None:
        """Tell how a trial ended, unless that was told before."""
        if not self.frozen(number).state.is_finished():
            self.optuna.tell(number, value, state)

    def begin(self) -> None:
        """Add the settings to try first, and those that failed, unless they are there; the caller holds `mutex`."""
        trials = self.optuna.get_trials(deepcopy=False)
        for point in self.search.starting_points():
            if not any(trial.system_attrs.get("fixed_params") == point for trial in trials):
                self.optuna.enqueue_trial(point)
        retried = {trial.user_attrs.get(RETRY) for trial in trials}
        for trial in self.trials(TrialState.FAIL):
            if trial.number not in retried and trial.params.keys() == self.search.dimensions(trial.params).keys():
                self.optuna.enqueue_trial(trial.params, user_attrs={RETRY: trial.number})

    def create_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler that chooses trial `number`: the same one, whichever process asks."""
        options, samplers = self.search.options, optuna.samplers
        seed = (options.seed * 1_000_003 + number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match options.sampler:
                case "tpe":
                    return samplers.TPESampler(seed=seed, constant_liar=True)
                case "gp":
                    return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
                case "cmaes":
                    return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
                case "qmc":  # keeps its position in the study; the seed is that of the sequence
                    return samplers.QMCSampler(scramble=True, seed=options.seed, warn_independent_sampling=False)
        return samplers.RandomSampler(seed=seed)


def create_pruner(search: Search, steps: int) -> optuna.pruners.BasePruner:
    """Return the pruner of a search whose trials have some steps."""
    pruner = search.options.pruner
    if pruner.name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=pruner.first or 1, reduction_factor=pruner.factor)
    if pruner.name == "hyperband":
        return optuna.pruners.HyperbandPruner(pruner.first or 1, steps, pruner.factor)
    return optuna.pruners.MedianPruner() if pruner.name == "median" else optuna.pruners.NopPruner()


def to_distribution(dimension: Dimension) -> BaseDistribution:
    """Return Optuna's distribution of a dimension."""
    if dimension.distribution == "choice":
        return CategoricalDistribution([dimension.encode(value) for value in dimension.bounds])
    low, high = (float(bound) for bound in dimension.bounds)
    if dimension.distribution == "integer":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.distribution == "loguniform")


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Return the value of a parameter of a trial, chosen by the sampler unless the trial has it."""
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
        case IntDistribution():
            return trial.suggest_int(name, distribution.low, distribution.high)
        case FloatDistribution():
            return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    raise TypeError(f"{name}: {distribution}")


def write_search(sweep: Path, search: Search) -> None:
    """Write the search for its workers; ConfigError if the study has begun with another one."""
    document = json.loads(json.dumps(search.to_document()))
    if (sweep / JOURNAL).exists() and (earlier := read_json(sweep / SEARCH)):
        for name, before, now in compare(Search.from_document(earlier), search):
            raise ConfigError(
                f"{search.file}: {name}: {now}: the study of {sweep} has begun with {before}, and its trials cannot "
                "stand beside others; restore it, or set another name: for a new study"
            )
    write_json(sweep / SEARCH, document)


def read_search(sweep: Path) -> Search | None:
    """Return the search of a sweep's directory; None if there is none."""
    document = read_json(sweep / SEARCH)
    return Search.from_document(document) if document else None


def compare(before: Search, now: Search) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value before and value now of what may not change once a study has begun."""
    ranges = [describe_ranges(search) for search in (before, now)]
    for key in dict.fromkeys([*ranges[0], *ranges[1]]):
        texts = [own.get(key, "nothing") for own in ranges]
        if texts[0] != texts[1]:
            yield key, texts[0], texts[1]
    for key in ("metric", "direction", "pruner"):
        values = [getattr(search.options, key) for search in (before, now)]
        if values[0] != values[1]:
            yield f"search.{key}", values[0], values[1]
    corners = before.first_corners()
    identities = [[t.identity for corner in corners for t in search.trials(corner)] for search in (before, now)]
    if identities[0] != identities[1]:
        yield "settings that are not searched", identities[0], identities[1]


def describe_ranges(search: Search) -> dict[str, str]:
    """Return key → range of all that a search varies."""
    ranges = {f"search.space.{key}": dimension for key, dimension in search.space.items()}
    for name, branch in search.branches.items():
        ranges |= {f"trials: {name}: {dimension.key}": dimension for dimension in branch.space.values()}
    texts = {key: f"{{{dimension.distribution}: {dimension.bounds}}}" for key, dimension in ranges.items()}
    return texts | {"trials": ", ".join(search.branches) or "nothing"}
