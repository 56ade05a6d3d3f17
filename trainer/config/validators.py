"""The base class of every block of a YAML file, and checks of single values."""

import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from trainer.data.rgb import parse_colour

SCIENTIFIC = re.compile(r"\d+(\.\d*)?e\+?\d{1,2}", re.IGNORECASE)  # 1e3, which YAML reads as text
BOOLEAN_WORDS = {True: ("yes", "on", "true"), False: ("no", "off", "false")}  # YAML reads these as booleans
RESERVED_OPTIONS = {  # sbatch option -> the setting that controls it
    "nodes": "resources.nodes",
    "ntasks-per-node": "resources.processes_per_node",
    "cpus-per-task": "resources.cpus_per_gpu",
    "gpus-per-node": "resources.gpus_per_node",
    "mem": "resources.mem_gb",
    "time": "resources.time",
    "signal": "resources.signal_delay",
    "array": "resources.max_parallel",
    "job-name": "name",
    "output": "the log in slurm/<job>/",
    "error": "the log in slurm/<job>/",
    "open-mode": "the log in slurm/<job>/",
    "requeue": "resources.max_requeues",
    "dependency": "the order train, eval, report",
    "kill-on-invalid-dep": "the order train, eval, report",
    "ntasks": "resources.processes_per_node",
    "no-requeue": "resources.max_requeues",
    "export": "the preset's `setup:` lines",
    "export-file": "the preset's `setup:` lines",
    "chdir": "the directory that you submit from",
}
# Options that end sbatch without a job, or make it wait for one.
UNUSABLE_OPTIONS = {
    "help",
    "usage",
    "version",
    "test-only",
    "wait",
    "wrap",
    "parsable",
    "clusters",
    "cluster-constraint",
}


class Section(BaseModel):
    """Refuse unknown keys, and check defaults like written values."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def restore_words(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Read YAML's `no` as "no" where that is a choice; refuse a boolean where a number is expected."""
        if isinstance(value, bool):
            choices = get_args(cls.model_fields[str(info.field_name)].annotation)
            value = next((word for word in BOOLEAN_WORDS[value] if word in choices), value)
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, str) and str not in (annotation, *get_args(annotation)):
            if re.fullmatch(r"0\d+", value):
                raise ValueError("a number must not begin with 0; remove the zeros")
            if SCIENTIFIC.fullmatch(value) and float(value).is_integer():
                value = int(float(value))
        result = validate(value)
        if isinstance(value, bool) and not isinstance(result, bool):
            raise ValueError("expected a number, got a boolean")
        return result


def parse_slurm_time(text: str) -> int:
    """Return the seconds of a time as Slurm writes it; ValueError for anything else, such as UNLIMITED.

    The formats are minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM and D-HH:MM:SS.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if len(parts) > 3 or not all(part.isdecimal() for part in ([days, *parts] if dash else parts)):
        raise ValueError(f"{text!r} is not a time")
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


def check_time_limit(value: Any) -> str:
    """Check a Slurm time limit: minutes, MM:SS, HH:MM:SS or D-HH:MM:SS."""
    try:
        if not isinstance(value, str):
            raise ValueError
        parse_slurm_time(value)
    except ValueError:
        raise ValueError(
            'must look like "02:00:00" (hours:minutes:seconds) or "1-00:00:00" (days first), in quotes'
        ) from None
    if any(int(part) >= 60 for part in value.rpartition("-")[2].split(":")[1:]):
        raise ValueError('minutes and seconds go up to 59; write "02:00:00" (hours:minutes:seconds)')
    return value


def check_gres(name: str) -> str:
    """Check the GPU type of Slurm's --gres, which gpus_per_node completes with the count."""
    if not re.fullmatch(r"[A-Za-z][\w.-]*(:(?!\d+$)[\w.-]+)?", name):
        raise ValueError("must be a name such as gpu or gpu:a100, without a count: that is gpus_per_node")
    return name


Value = TypeVar("Value", bound=str | int | bool | None)


def check_sbatch_options(options: dict[str, Value]) -> dict[str, Value]:
    """Refuse malformed sbatch options and those that Turnout sets itself."""
    for key, value in options.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise ValueError(f"{key!r} is no sbatch option; write its long name, such as partition or mem-per-gpu")
        if key in RESERVED_OPTIONS:
            raise ValueError(f"{key} is set by Turnout; use {RESERVED_OPTIONS[key]} instead")
        if key in UNUSABLE_OPTIONS:
            raise ValueError(
                f"{key} cannot be used: a sweep is several jobs on one cluster, which depend on each other"
            )
        if not str(value).isprintable():
            raise ValueError(f"{key}: {value!r} contains a line break or a control character; remove it")
    return options


def check_sweep_name(name: str) -> str:
    """Check a sweep's name, which is also the name of its directory."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("must be at most 100 letters, digits, dots, _ and -, the first a letter or digit; set name:")
    return name


def check_colour(text: str) -> str:
    """Check a colour: white, black or #rrggbb; ValueError."""
    parse_colour(text)
    return text


def read_class_names(classes: Any) -> Any:
    """Read the numbers in data.classes as names."""
    if isinstance(classes, dict):
        return {str(name): str(other) for name, other in classes.items()}
    return [str(name) for name in classes] if isinstance(classes, list) else classes


def check_metric_name(name: str) -> str:
    """Check that a metric's name can be that of a Python file; eval/ knows which metrics exist."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("must be the name of a metric, such as accuracy")
    return name


def check_range(bounds: tuple[float, float]) -> tuple[float, float]:
    """Check that the first number is not above the second."""
    if bounds[0] > bounds[1]:
        raise ValueError("must be [lowest, highest]")
    return bounds
