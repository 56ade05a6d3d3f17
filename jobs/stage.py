"""Download, decode and cache what the trials of a sweep share: datasets, and what metrics need (weights, classifiers,
reference statistics). Run it on a machine with network access: jobs on Slurm download nothing."""

import shlex
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from eval import metrics
from jobs.command import Terminal, create_parser, print_plain
from jobs.plan import load_sweep
from trainer.config.schema import Config
from trainer.data import cache
from trainer.data.dataset import Form
from trainer.data.provenance import summarize
from trainer.data.raw import locate
from trainer.data.registry import get
from trainer.data.store import check_files
from trainer.environment import use_utf8
from trainer.errors import ConfigError, DataError

EXAMPLES = """examples:
  python jobs/stage.py sweeps/dann.yaml
  TURNOUT_DATA=/scratch/data python jobs/stage.py sweeps/dann.yaml data.source=svhn data.size=28"""


@dataclass(frozen=True)
class RequiredDataset:
    """A dataset in the form in which trials read it."""

    name: str
    form: Form
    root: Path
    key: str  # the key of the YAML that names it, for messages

    @property
    def folder(self) -> Path:
        """The folder of its cache, staged or not."""
        return cache.folder(self.name, self.root, form=self.form)

    def is_staged(self) -> bool:
        """Return whether its cache is complete."""
        return cache.staged(self.name, self.root, form=self.form)

    def is_bundled(self) -> bool:
        """Return whether an installed package contains it, so that staging takes seconds and no network."""
        return not get(self.name).files


def list_datasets(configs: Iterable[Config]) -> list[RequiredDataset]:
    """Return the datasets that trials read, without repetition, in the order of the trials."""
    datasets: dict[tuple[str, Form, Path], RequiredDataset] = {}
    for data in {str(config.data): config.data for config in configs}.values():
        form = data.form()
        root = cache.data_root(data.root)
        for domain, name in data.datasets().items():
            dataset = RequiredDataset(name, form, root, f"data.{domain or 'dataset'}")
            datasets.setdefault((name, form, root), dataset)
    return list(datasets.values())


def list_missing(configs: Iterable[Config]) -> list[RequiredDataset]:
    """Return the datasets that trials read and that are not staged."""
    return [dataset for dataset in list_datasets(configs) if not dataset.is_staged()]


def staging_command(file: Path, overrides: Sequence[str]) -> str:
    """Return the command that stages what a sweep reads."""
    return shlex.join(["python", "jobs/stage.py", str(file), *overrides])


def stage_datasets(
    file: Path,
    overrides: Sequence[str],
    configs: Iterable[Config],
    console: Console,
    download: bool = True,
    skip_unreadable: bool = False,
) -> None:
    """Stage the missing datasets of a sweep; without `download`, only bundled ones.

    ConfigError if that is not enough, before anything is staged; it repeats `file` and `overrides` in the command that
    stages the rest.
    """
    configs, command = list(configs), staging_command(file, overrides)
    if not download:
        check_weights(file, command, configs)
    missing = list_missing(configs)
    remote = [dataset for dataset in missing if not download and not dataset.is_bundled()]
    if remote:
        raise ConfigError(
            f"{file}: {remote[0].key}: not staged: {', '.join(str(dataset.folder) for dataset in remote)}; jobs on "
            f"Slurm download nothing, so first run with network access: {command}"
        )
    for dataset in missing:
        stage_dataset(dataset, file, console, skip_unreadable)


def check_weights(file: Path, command: str, configs: Iterable[Config]) -> None:
    """Refuse metrics whose downloaded weights are missing; ConfigError."""
    for metric in sorted({metric for config in configs for metric in config.eval.metrics}):
        if not metrics.declares(metric, "weights"):
            continue
        properties = metrics.load(metric).METRIC  # imports torch, which takes seconds
        if not (path := properties.weights()).exists():
            raise ConfigError(
                f"{file}: eval.metrics: {metric}: its weights are not at {path}; jobs on Slurm download nothing, "
                f"so first run with network access: {command}; or use {properties.substitute}, which needs none"
            )


def stage_dataset(dataset: RequiredDataset, file: Path, console: Console, skip_unreadable: bool) -> None:
    """Download the raw files of a dataset if missing, decode them and write the cache; ConfigError if that fails."""
    started = time.monotonic()
    title = f"staging {dataset.name} into {dataset.root}"
    print_plain(console, title)
    # During a download, torchvision shows a progress bar, which a spinner would overwrite.
    is_downloaded = all(locate(dataset.root / raw) for raw in get(dataset.name).files)
    spinner: AbstractContextManager[object] = console.status(title) if is_downloaded else nullcontext()
    try:
        with spinner:
            cache.stage(dataset.name, dataset.root, skip=skip_unreadable, form=dataset.form)
    except DataError as error:
        raise ConfigError(f"{file}: {dataset.key}: {error}") from None
    size = sum(path.stat().st_size for path in dataset.folder.iterdir()) / 2**20
    seconds = time.monotonic() - started
    print_plain(console, f"staged {dataset.name} in {seconds:.1f} s, {size:.1f} MiB: {dataset.folder}")
    for line in summarize(dataset.folder):
        print_plain(console, f"  {line}")


def list_references(configs: Iterable[Config]) -> list[tuple[str, RequiredDataset]]:
    """Return each metric of the trials with each dataset that samples are compared with: the only one or the source."""
    references: dict[tuple[str, Path], tuple[str, RequiredDataset]] = {}
    for config in configs:
        dataset = list_datasets([config])[0]
        references |= {(metric, dataset.folder): (metric, dataset) for metric in config.eval.metrics}
    return list(references.values())


def stage_metric(metric: str, dataset: RequiredDataset, file: Path, console: Console) -> None:
    """Compute what a metric caches for a dataset, if anything; ConfigError if that fails."""
    if not metrics.declares(metric, "stage"):
        return
    import torch  # takes seconds

    started = time.monotonic()
    print_plain(console, f"staging the references of {metric} for {dataset.folder.name}")
    try:
        metrics.load(metric).METRIC.stage(dataset.folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except DataError as error:
        raise ConfigError(f"{file}: eval.metrics: {metric}: {error}") from None
    print_plain(console, f"staged the references of {metric} in {time.monotonic() - started:.1f} s")


def main(arguments: list[str] | None = None) -> int:
    """Stage a sweep's data; return the exit code: 0, 2 for bad input or unavailable data, 130 after Ctrl-C."""
    parser = create_parser("stage", __doc__, EXAMPLES)
    parser.add_argument("sweep", type=Path, help="YAML file of the sweep, such as sweeps/dann.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for jobs/submit.py")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out damaged or too small images, and count them"
    )
    parser.add_argument("--verify", action="store_true", help="check the sha256 of every file that is already staged")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treat SIGTERM like Ctrl-C
    console = Terminal()
    errors: list[ValueError] = []
    try:
        configs = [trial.config for trial in load_sweep(options.sweep, options.overrides)]
        for dataset in [dataset for dataset in list_datasets(configs) if dataset.is_staged()]:
            print_plain(console, f"already staged: {dataset.folder}")
            if options.verify:
                check_files(dataset.folder, cache.origin(dataset.folder)["files"])
                print_plain(console, f"verified: every file of {dataset.folder.name} has its sha256")
            for line in summarize(dataset.folder):
                print_plain(console, f"  {line}")
        stage_datasets(options.sweep, options.overrides, configs, console, skip_unreadable=options.skip_unreadable)
        for metric, dataset in list_references(configs):
            try:  # A metric that cannot be staged must not keep the others from being staged.
                stage_metric(metric, dataset, options.sweep, console)
            except ConfigError as error:
                errors.append(error)
    except (ConfigError, DataError) as error:
        errors.append(error)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return 130
    for problem in errors:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    return 2 if errors else 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
