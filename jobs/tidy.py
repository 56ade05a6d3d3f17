"""Remove what the finished trials of a sweep no longer need, or pack the sweep into one file. First only show it.

A trial is finished when it is trained and has all metrics of its config. Its config, metrics, figures, logs, last
exported weights and those that a metric was chosen by stay. Nothing of a trial that is not finished is touched.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from eval.record import list_chosen_steps, needs_evaluation
from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.backends.slurm.backend import SlurmBackend
from jobs.backends.slurm.job_logs import list_job_scripts
from jobs.command import create_parser
from jobs.plan import lock_sweep
from trainer.config.resolve import load_config
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.archive import archive_file, pack
from trainer.runs.directory import RunDirectory, find_runs

EXAMPLES = """examples:
  python jobs/tidy.py logs/dann                  # what would be removed, and its size
  python jobs/tidy.py logs/dann --yes
  python jobs/tidy.py logs/dann --archive --yes  # then: python eval/report.py logs/dann.tar"""


@dataclass(frozen=True)
class Removal:
    """Files or directories of one kind that nothing needs any more."""

    kind: str
    paths: Sequence[Path]

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(count_bytes(path) for path in self.paths)


def main(arguments: list[str] | None = None) -> int:
    """Show or remove; return the exit code: 0, or 2 for bad input or a sweep that is at work."""
    parser = create_parser("tidy", __doc__, EXAMPLES)
    parser.add_argument("sweep", type=Path, help="directory of a sweep, such as logs/dann")
    parser.add_argument("--yes", action="store_true", help="remove it; without this, only show what would go")
    parser.add_argument(
        "--archive", action="store_true", help="then move the whole directory into <sweep>.tar beside it"
    )
    options = parser.parse_args(arguments)
    try:
        sweep = options.sweep if options.sweep.name else options.sweep.absolute()
        if not find_runs(sweep):
            raise ConfigError(f"{sweep}: no trials there; give a sweep's directory, such as logs/dann")
        with lock_sweep(sweep, "tidies"):
            tidy(sweep, options.yes, options.archive)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def tidy(sweep: Path, confirmed: bool, archive: bool) -> None:
    """Print a table of what is not needed; remove it if `confirmed`. ConfigError if a busy sweep is to be packed."""
    activity = describe_activity(sweep)
    if archive and activity:
        raise ConfigError(f"{sweep}: cannot be packed: {activity}; wait for its end, or cancel it")
    removals = list_removals(sweep, is_idle=not activity)
    print(f"{'what':<42}  {'number':>7}  {'MiB':>9}")
    for removal in removals:
        print(f"{removal.kind:<42}  {len(removal.paths):>7}  {removal.size() / 2**20:>9.1f}")
    if activity:
        print(f"scripts of jobs and copies of code stay: {activity}")
    if not confirmed:
        target = f", and the rest moved into {archive_file(sweep)}" if archive else ""
        print(f"with --yes, this is removed{target}; nothing is removed now")
        return
    for removal in removals:
        for path in removal.paths:
            rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if archive:
        print(f"{sweep}: moved into {pack(sweep)}; unpack it again by: tar -xf {archive_file(sweep)} -C {sweep.parent}")


def describe_activity(sweep: Path) -> str:
    """Return which jobs or trials of a sweep wait or run, or why that is not known; '' if there are none."""
    backends: tuple[Backend, ...] = (LocalBackend(), SlurmBackend())
    try:
        jobs = [f"{backend.name} job {job.id}" for backend in backends for job in backend.active(sweep)]
    except ConfigError as error:
        return str(error)
    busy = jobs + [run.name for run in find_runs(sweep) if run.state() == "running"]
    return f"{busy[0]} waits or runs" if busy else ""


def list_removals(sweep: Path, is_idle: bool) -> list[Removal]:
    """Return what nothing needs any more; scripts and copies of code only where no job waits or runs."""
    finished = [run for run in find_runs(sweep) if is_finished(run)]
    checkpoints = [path for run in finished for path in list_checkpoints(run)]
    milestones = [path for run in finished for path in list_unchosen(run)]
    return [
        Removal("checkpoints of finished trials", checkpoints),
        Removal("exported weights that no metric chose", milestones),
        Removal("scripts of ended jobs", list_job_scripts(sweep) if is_idle else []),
        Removal("copies of code that git can restore", [*list_unused_code(sweep)] if is_idle else []),
    ]


def is_finished(run: RunDirectory) -> bool:
    """Return whether a trial is trained and has all metrics of its config."""
    with suppress(ConfigError):  # of a method or dataset that no longer exists
        return run.is_done() and not needs_evaluation(load_config(run.config_file), run)
    return False


def list_checkpoints(run: RunDirectory) -> list[Path]:
    """Return the checkpoints of a finished trial, unless its config says to keep them."""
    if load_config(run.config_file).train.keep_checkpoints:
        return []
    return [path for path in (run.checkpoints, run.latest_file) if path.exists()]


def list_unchosen(run: RunDirectory) -> list[Path]:
    """Return the exported weights that no metric of an evaluation is of; none without an evaluation."""
    chosen, weights = list_chosen_steps(run), run.exported_weights()
    return [path for step, path in weights.items() if step not in chosen] if chosen else []


def list_unused_code(sweep: Path) -> Iterator[Path]:
    """Yield the copies of code that are equal to a commit, or that no submission names.

    Another one may be the only record of what trained its trials.
    """
    records = {line["code"]: line for line in submissions.read(sweep) if "code" in line}
    for path in sorted((sweep / "code").glob("*")):
        record = records.get(str(path.relative_to(sweep)))
        if record is None or (record["commit"] and record["dirty"] is False):
            yield path


def count_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
