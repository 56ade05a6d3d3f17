"""Cluster presets, sweeps/clusters/<name>.yaml: what is particular to a site, and no part of any trial's identity."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, PrivateAttr, ValidationError

from jobs.backends.slurm.allocation import DEAF
from jobs.snapshot import ROOT
from trainer.config.document import Settings, find_place, nest, read_settings
from trainer.config.resolve import explain
from trainer.config.schema import Resources
from trainer.config.validators import Section
from trainer.errors import ConfigError, check_known

FOLDER = ROOT / "sweeps" / "clusters"
VARIABLE = "TURNOUT_CLUSTER"  # stands in for --cluster
KINDS = ("local", "slurm")  # of clusters, without any preset


def words(command: Any) -> Any:
    """Part a command as a shell would, without expanding anything; a list is taken as it is."""
    return shlex.split(command) if isinstance(command, str) else command


Words = Annotated[list[str], BeforeValidator(words)]


class Preset(Section):
    """What a cluster's jobs are started with; the default is a cluster with nothing particular to it."""

    resources: Resources = Resources()  # defaults, below a sweep file's own
    setup: list[str] = Field(default_factory=list)  # lines of shell in the batch script, before anything is started
    container: Words = Field(default_factory=list)  # words before the Python of trainings, evaluations and reports
    python: str | None = None  # default: the one that submits; in a container: python3
    srun: Words = Field(default_factory=list)  # further options of srun
    max_array: PositiveInt | None = None  # elements of an array, where that is less than the controller says
    max_jobs: PositiveInt | None = None  # jobs of a user in the queue, likewise; each element of an array is one

    _settings: Settings = PrivateAttr(default_factory=dict)  # as written

    def defaults(self) -> Settings:
        """Return the preset's `resources:`, defaults below a sweep file's own."""
        return {key: setting for key, setting in self._settings.items() if key.startswith("resources.")}


@dataclass(frozen=True)
class Site:
    """Where jobs start: on which kind of cluster, and from which copy of the code."""

    preset: Preset
    code: Path

    def launcher(self) -> str:
        """What starts the launcher, as text for the shell of the batch script. It stays outside of a container: it
        needs Slurm's commands."""
        # A signal that comes before the launcher has set its handlers would kill it: so it starts deaf. With -m, Python
        # looks into the working directory before anywhere else: so that is the code's until the launcher is loaded.
        code, python = shlex.quote(str(self.code)), None if self.preset.container else self.preset.python
        path = f'PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"'  # what the setup lines have set stays, behind
        return " ".join([*DEAF, f"--chdir={code}", path, shlex.quote(python or sys.executable)])

    def container(self) -> list[str]:
        """The words that start a Python in the preset's container; none without one."""
        return [*self.preset.container, self.preset.python or "python3"] if self.preset.container else []


def choose(name: str | None) -> tuple[str | None, Preset]:
    """What a name asks for: local, slurm or None (whichever there is), and the preset for Slurm; ConfigError where
    there is no such preset, or a bad one."""
    if name is None or name in KINDS:
        return name, Preset()
    if "/" in name or name.endswith((".yaml", ".yml")):
        file = Path(name)
    else:
        presets = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        try:
            file = FOLDER / f"{check_known(name, [*KINDS, *presets], 'cluster')}.yaml"
        except ValueError as error:
            raise ConfigError(f"--cluster or {VARIABLE}: {error}; presets lie in sweeps/clusters/") from None
    settings = read_settings(file)
    try:
        preset = Preset.model_validate(nest(settings))
    except ValidationError as error:
        key, problem = explain(error, Preset)
        raise ConfigError(f"{find_place(settings, key, str(file))}: {key}: {problem}") from None
    preset._settings = settings
    check_options(settings)
    return "slurm", preset


def check_options(settings: Settings) -> None:
    """Let sbatch check the options of `resources.slurm`; ConfigError with Slurm's own message or the nearest name.

    Nothing is submitted. Without a working sbatch nothing is refused.
    """
    options = {key: s for key, s in settings.items() if key.startswith("resources.slurm.")}
    if not options or parse("--usage").returncode:
        return
    for full_key, setting in options.items():
        key, value = full_key.removeprefix("resources.slurm."), setting.value
        said = parse(f"--{key}" if value is True else f"--{key}={value}", "--usage")
        if said.returncode == 0:
            continue
        listed = {word.partition("=")[0].lstrip("-[") for word in parse("--help").stdout.split() if word[:2] == "--"}
        near = get_close_matches(key, sorted(listed), 1)
        if "unrecognized option" in said.stderr:
            hint = f"did you mean {near[0]!r}? " if near else ""
            problem = f"unknown sbatch option {key!r}; {hint}`sbatch --help` lists them"
        else:
            problem = f"{value!r}: sbatch refuses it: {said.stderr.strip().splitlines()[0]}"
        raise ConfigError(f"{setting.place}: {full_key}: {problem}")


def parse(*words: str) -> "subprocess.CompletedProcess[str]":
    """Let sbatch read options, of which the last makes it leave without submitting anything."""
    command, silent = ["sbatch", *words], subprocess.DEVNULL
    try:
        return subprocess.run(command, stdin=silent, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
