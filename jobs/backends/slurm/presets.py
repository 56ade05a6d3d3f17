"""Cluster presets, sweeps/clusters/<name>.yaml: the settings of a site, which are no part of any trial's identity."""

import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, PrivateAttr, ValidationError

from jobs.backends.base import IGNORE_SIGNALS
from jobs.backends.slurm.client import ask
from jobs.snapshot import ROOT
from trainer.config.document import Settings, find_place, nest, read_settings
from trainer.config.resolve import explain
from trainer.config.schema import Resources
from trainer.config.validators import Section
from trainer.errors import ConfigError, check_known

FOLDER = ROOT / "sweeps" / "clusters"
VARIABLE = "TURNOUT_CLUSTER"  # the default of --cluster
BACKENDS = ("local", "slurm")  # names of backends, which need no preset


def split_command(command: Any) -> Any:
    """Split a command as a shell would, without expanding anything; leave a list as it is."""
    return shlex.split(command) if isinstance(command, str) else command


Command = Annotated[list[str], BeforeValidator(split_command)]


class Preset(Section):
    """How the jobs of a cluster are started; the default has no site settings."""

    resources: Resources = Resources()  # defaults, which a sweep file overrides
    copy_to: str | None = None  # default of data.copy_to
    setup: list[str] = Field(default_factory=list)  # lines of shell at the start of the batch script
    container: Command = Field(default_factory=list)  # goes before the Python of trainings, evaluations and reports
    python: str | None = None  # default: the one that submits; in a container: python3
    srun: Command = Field(default_factory=list)  # further options of srun
    max_array: PositiveInt | None = None  # elements of an array, where the controller would allow more
    max_jobs: PositiveInt | None = None  # jobs of a user in the queue; each element of an array is one

    _settings: Settings = PrivateAttr(default_factory=dict)  # as written

    def defaults(self) -> Settings:
        """Return the settings of `resources:` and data.copy_to, which sweep files override."""
        own = {"data.copy_to": self._settings["copy_to"]} if self.copy_to else {}
        return own | {key: setting for key, setting in self._settings.items() if key.startswith("resources.")}

    def launcher_command(self, code: Path) -> str:
        """Return the shell command of the Python that runs the worker from a code copy.

        The worker stays outside of a container, because it needs Slurm's commands.
        """
        # A signal before the worker has set its handlers would kill it, so it starts with signals ignored. With -m,
        # Python looks into the working directory first, so that is the code's until the worker is loaded.
        directory, python = shlex.quote(str(code)), None if self.container else self.python
        path = f'PYTHONPATH={directory}"${{PYTHONPATH:+:$PYTHONPATH}}"'  # keep what the setup lines have set
        return " ".join([*IGNORE_SIGNALS, f"--chdir={directory}", path, shlex.quote(python or sys.executable)])

    def container_command(self) -> list[str]:
        """Return the command that starts a Python in the container; empty without one."""
        return [*self.container, self.python or "python3"] if self.container else []


def load_preset(name: str | None) -> Preset:
    """Return the preset of a name or path, the empty one for None and the names of backends; ConfigError."""
    if name is None or name in BACKENDS:
        return Preset()
    if "/" in name or name.endswith((".yaml", ".yml")):
        file = Path(name)
    else:
        presets = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        try:
            file = FOLDER / f"{check_known(name, [*BACKENDS, *presets], 'cluster')}.yaml"
        except ValueError as error:
            raise ConfigError(f"--cluster or {VARIABLE}: {error}; presets are in sweeps/clusters/") from None
    settings = read_settings(file)
    try:
        preset = Preset.model_validate(nest(settings))
    except ValidationError as error:
        key, problem = explain(error, Preset)
        raise ConfigError(f"{find_place(settings, key, str(file))}: {key}: {problem}") from None
    preset._settings = settings
    check_options(settings)
    return preset


def check_options(settings: Settings) -> None:
    """Let the installed sbatch check `resources.slurm`; ConfigError with Slurm's own words, or the nearest name.

    Nothing is submitted. If sbatch does not answer, nothing is refused.
    """
    options = {
        key: setting
        for key, setting in settings.items()
        if "resources.slurm." in key and setting.value is not None  # null leaves an option out
    }
    if not options or ask("sbatch", "--usage").error:
        return
    for full_key, setting in options.items():
        key, value = full_key.rpartition("resources.slurm.")[2], setting.value
        answer = ask("sbatch", f"--{key}" if value is True else f"--{key}={value}", "--usage")
        if not answer.error:
            continue
        if "unrecognized option" in answer.stderr:
            words = ask("sbatch", "--help").output.split()
            valid = {word.partition("=")[0].lstrip("-[") for word in words if word[:2] == "--"}
            near = get_close_matches(key, sorted(valid), 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problem = f"unknown sbatch option {key!r}; {hint}`sbatch --help` lists them"
        else:
            problem = f"{value!r}: sbatch refuses it: {answer.stderr.strip().splitlines()[0]}"
        raise ConfigError(f"{setting.place}: {full_key}: {problem}")
