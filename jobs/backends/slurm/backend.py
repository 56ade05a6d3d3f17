"""Slurm as a backend: one array trains, one evaluates each trial as it ends, and a last job reports."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.backends.base import ActiveJob, Job, Plan
from jobs.backends.slurm import accounting, client, limits, presets
from jobs.backends.slurm.arrays import Array, fit_arrays, leave_room
from jobs.backends.slurm.presets import Preset
from trainer.config.document import Settings
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory


@dataclass(frozen=True)
class SlurmBackend:
    """The cluster whose commands are installed here, with the settings of a preset."""

    preset: Preset = field(default_factory=Preset)
    after: tuple[str, ...] = ()  # ids of other jobs that those of `submit` wait for
    name: str = "slurm"

    def unavailable(self) -> str | None:
        """Return why Slurm cannot take jobs here; None if it can."""
        return client.unavailable()

    def check(self, settings: Settings, config: Config) -> None:
        """Refuse options that the installed sbatch does not accept, and a time that no job gets; ConfigError."""
        presets.check_options(settings)
        limits.check_time(settings, "resources", config.resources)
        if config.eval.resources and config.eval.metrics:
            limits.check_time(settings, "eval.resources", config.evaluation_resources())

    def wait_for(self, word: str) -> "SlurmBackend":
        """Return this backend with jobs to wait for: an id, or all jobs of a sweep's directory; ConfigError."""
        if word.isdigit():
            ids = [word] if client.queue([word]) else []
        elif Path(word).is_dir():
            ids = sorted({job.id.partition("_")[0] for job in self.active(Path(word))}, key=int)
        else:
            raise ConfigError(
                f"command line: --after: {word}: give a job id or the directory of a sweep, such as logs/dann"
            )
        return replace(self, after=(*self.after, *ids))

    def arrays(self, sweep: Path, plans: Sequence[Plan]) -> list[Array]:
        """Return the arrays of all plans, with the trainings of former submissions in view; ConfigError."""
        training = {} if self.unavailable() else accounting.count_training(sweep)
        plans, earlier = leave_room(plans, training)
        arrays = fit_arrays(sweep, plans, self.preset)
        return [replace(array, earlier=earlier if array.stage == "train" else ()) for array in arrays]

    def scripts(self, sweep: Path, plans: Sequence[Plan], code: Path) -> Iterator[str]:
        """Yield the batch scripts that `submit` would use, with placeholders for ids."""
        from jobs.backends.slurm import sbatch

        ids: list[str] = []
        for array in self.arrays(sweep, plans):
            yield sbatch.script(sweep, array, array.dependency(ids, self.after), self.preset, code)
            ids.append(f"{array.stage.upper()}{len(ids)}")
        if plans:
            yield sbatch.script(sweep, report_array(sweep, plans), after_all(ids), self.preset, code)
        if command := self.preset.container_command():
            yield f"# In the jobs, trainings, evaluations and reports start with: {shlex.join(command)}"

    def submit(self, sweep: Path, plans: Sequence[Plan], code: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Submit all jobs and record them with `notes`; return the record.

        ConfigError with Slurm's own words if it refuses a job; those that it had accepted are then cancelled.
        """
        from jobs.backends.slurm import sbatch

        if submissions.is_unfinished(sweep):  # of a command that was killed
            submissions.finish(sweep, accounting.read_submissions(sweep)[-1])
        record: dict[str, Any] = {"cluster": self.name, "arrays": [], **notes}
        try:
            for array in self.arrays(sweep, plans):
                waits = array.dependency(accounting.submitted_ids(record), self.after)
                trials = [run.name for run in array.runs]
                entry = {"stage": array.stage, "id": "", "trials": trials, "each": array.each}
                slots = {"slots": array.slots} if array.slots > 1 else {}
                limit = {"max_parallel": array.resources.max_parallel * array.slots} if array.stage == "train" else {}
                after = {"after": list(array.earlier)} if array.earlier else {}
                record["arrays"].append(entry | slots | limit | after)
                submissions.write_unfinished(sweep, record)
                record["arrays"][-1]["id"] = sbatch.submit_array(sweep, array, waits, self.preset, code)
            waits = after_all(accounting.submitted_ids(record))
            record["report"] = ""
            submissions.write_unfinished(sweep, record)
            record["report"] = sbatch.submit_array(sweep, report_array(sweep, plans), waits, self.preset, code)
        except BaseException:
            # Interrupted while sbatch was running, it may have been accepted without an id here.
            client.cancel(accounting.submitted_ids(accounting.adopt(sweep, record)))
            submissions.finish(sweep, None)
            raise
        submissions.finish(sweep, record)
        return record

    def jobs(self, sweep: Path) -> tuple[dict[str, list[Job]], list[str]]:
        """Return trial → its jobs, oldest first, and notes on what could not be queried."""
        jobs, notes = accounting.read_jobs(sweep)
        return {trial: list(own) for trial, own in jobs.items()}, notes

    def active(self, sweep: Path) -> list[ActiveJob]:
        """Return the jobs of a sweep that wait or run; ConfigError if it has jobs and Slurm does not answer."""
        return accounting.active_jobs(sweep)

    def cancel(self, jobs: Sequence[ActiveJob], whole: bool) -> None:
        """Cancel jobs by a plain scancel; ConfigError if one may not be cancelled.

        scancel sends SIGTERM to every process of a job, upon which a trial saves at its next step and exits, and
        SIGKILL only after KillWait (30 s by default). A job that is being cancelled never asks for a requeue; a milder
        signal first would make it ask for one. A trial that takes longer to save resumes from its last checkpoint.
        """
        # The report first: it would otherwise start as soon as nothing is left to wait for.
        for stage in ("report", "eval", "train"):
            if refusal := client.cancel([job.id for job in jobs if job.stage == stage]):
                raise ConfigError(f"scancel: {refusal}")


def report_array(sweep: Path, plans: Sequence[Plan]) -> Array:
    """Return the job that writes the report."""
    return Array("report", plans[0].stage_resources("report"), [RunDirectory(sweep)])


def after_all(ids: list[str]) -> dict[str, str]:
    """Return the sbatch options that wait for the end of arrays, however they end."""
    return {"dependency": f"afterany:{':'.join(ids)}"}
