"""Fetch, decode and make what the trials of a sweep share: data, the weights of FID's Inception, and what evaluations
keep of a set, its statistics and its classifier. Run it where there is a network: jobs on Slurm do not look for one."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rich.console import Console

from trainer.config.schema import Config
from trainer.config.sweep import load_trials
from trainer.data import cache
from trainer.data.raw import locate
from trainer.data.registry import get
from trainer.errors import ConfigError, DataError

EXAMPLES = """examples:
  python jobs/stage.py sweeps/dann.yaml
  TURNOUT_DATA=/scratch/data python jobs/stage.py sweeps/dann.yaml data.source=svhn data.size=28"""


@dataclass(frozen=True)
class Needed:
    """A dataset as trials read it."""

    name: str
    size: int  # pixels
    channels: int
    root: Path
    key: str  # that names it in a YAML

    @property
    def folder(self) -> Path:
        """Where it lies, once it is staged."""
        return cache.folder(self.name, self.root, self.size, self.channels)

    @property
    def staged(self) -> bool:
        """Whether it lies there, complete."""
        return cache.staged(self.name, self.root, self.size, self.channels)

    @property
    def embedded(self) -> bool:
        """Whether it comes with an installed package, so that staging takes seconds and no network."""
        return not get(self.name).files


def needed(configs: Iterable[Config]) -> list[Needed]:
    """What trials read, each set once, in their order."""
    found: dict[tuple[str, int, int, Path], Needed] = {}
    for data in {str(config.data): config.data for config in configs}.values():
        channels, size, _ = data.shape()
        root = cache.data_root(data.root)
        for domain, name in data.datasets().items():
            one = Needed(name, size, channels, root, f"data.{domain or 'dataset'}")
            found.setdefault((name, size, channels, root), one)
    return list(found.values())


def make_ready(
    file: Path, words: list[str], configs: Iterable[Config], fetch: bool, console: Console, skip: bool = False
) -> None:
    """Stage what is not; without `fetch` only what comes with the packages. ConfigError before anything is started.

    `file` and `words` are the sweep file and the overrides of the command line, which the remedy repeats. `skip` leaves
    out pictures that cannot be used.
    """
    configs = list(configs)
    command = shlex.join(["python", "jobs/stage.py", str(file), *words])
    if not fetch and (missing := weights(configs)) and not missing.exists():
        raise ConfigError(
            f"{file}: eval.metrics: fid: Inception's weights are not at {missing}; jobs on Slurm fetch nothing, so "
            f"first run, where there is a network: {command}; or leave fid out: fid_classifier needs none"
        )
    lacking = [one for one in needed(configs) if not one.staged]
    refused = [one for one in lacking if not fetch and not one.embedded]
    if refused:
        raise ConfigError(
            f"{file}: {refused[0].key}: not staged: {', '.join(str(one.folder) for one in refused)}; jobs on Slurm "
            f"fetch nothing, so first run, where there is a network: {command}"
        )
    for one in lacking:
        put(one, file, console, skip)


def weights(configs: Iterable[Config]) -> Path | None:
    """Where the weights that evaluations need are looked for, there or not; None where none are needed."""
    if not any("fid" in config.eval.metrics for config in configs):
        return None
    from eval.features import inception  # imports torch, which takes seconds: only where it must

    return inception.place()


def put(one: Needed, file: Path, console: Console, skip: bool) -> None:
    """Fetch (where its raw files are missing), decode and convert a set, saying so; ConfigError where it fails."""
    began = time.monotonic()
    doing = f"staging {one.name} into {one.root}"
    console.print(doing, markup=False, highlight=False, soft_wrap=True)
    # While it fetches, torchvision shows bars of its own.
    fetched = all(locate(one.root / raw) for raw in get(one.name).files)
    waiting: AbstractContextManager[object] = console.status(doing) if fetched else nullcontext()
    try:
        with waiting:
            cache.stage(one.name, one.root, one.size, one.channels, skip=skip)
    except DataError as error:
        raise ConfigError(f"{file}: {one.key}: {error}") from None
    size = sum(path.stat().st_size for path in one.folder.iterdir()) / 2**20
    took = time.monotonic() - began
    text = f"staged {one.name} in {took:.1f} s, {size:.1f} MiB: {one.folder}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def references(configs: Iterable[Config]) -> list[tuple[str, Needed]]:
    """Each metric of the trials, and each set that samples are compared with: the only one, or the source."""
    found: dict[tuple[str, Path], tuple[str, Needed]] = {}
    for config in configs:
        one = needed([config])[0]
        found |= {(metric, one.folder): (metric, one) for metric in config.eval.metrics}
    return list(found.values())


def compare_with(metric: str, one: Needed, file: Path, console: Console) -> None:
    """Let an evaluation make what it keeps of a set, if its file has a function `stage`; ConfigError where it fails."""
    make = getattr(import_module(f"eval.metrics.{metric}"), "stage", None)
    if make is None:
        return
    import torch

    began = time.monotonic()
    doing = f"staging what {metric} compares with, of {one.folder.name}"
    console.print(doing, markup=False, highlight=False, soft_wrap=True)
    try:
        make(one.folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except DataError as error:
        raise ConfigError(f"{file}: eval.metrics: {metric}: {error}") from None
    text = f"there, after {time.monotonic() - began:.1f} s"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Stage a sweep's data; return the exit code: 0, 2 where something cannot be had, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="jobs/stage.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, help="a YAML such as sweeps/dann.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for jobs/submit.py")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out, and count, pictures that are damaged or too small"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end: as with Ctrl-C
    console = Console()
    failed: list[ValueError] = []
    try:
        configs = [trial.config for trial in load_trials(options.sweep, options.overrides)]
        there = [one for one in needed(configs) if one.staged]
        for one in there:
            console.print(f"there already: {one.folder}", markup=False, highlight=False, soft_wrap=True)
        make_ready(options.sweep, options.overrides, configs, True, console, options.skip_unreadable)
        for metric, one in references(configs):
            try:  # what one metric lacks keeps no other from what it needs
                compare_with(metric, one, options.sweep, console)
            except ConfigError as error:
                failed.append(error)
    except (ConfigError, DataError) as error:
        failed.append(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    for fault in failed:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
