"""What all blocks of a YAML have in common, and the checks of single values that know nothing of the house."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

TRUTH = {True: ("yes", "on", "true"), False: ("no", "off", "false")}  # the words that YAML reads as truth values


class Section(BaseModel):
    """Unknown keys are errors; a default is as good as a written value."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def keep_truth(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Take YAML's no for "no" where that is a choice, and never a truth value for a number."""
        if isinstance(value, bool):
            choices = get_args(cls.model_fields[str(info.field_name)].annotation)
            value = next((word for word in TRUTH[value] if word in choices), value)
        result = check(value)
        if isinstance(value, bool) and not isinstance(result, bool):
            raise ValueError("is a truth value where a number must stand")
        return result


OWNED = {  # sbatch option -> the setting that decides it
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
}


def duration(text: Any) -> str:
    """Check a Slurm time limit: minutes, MM:SS, HH:MM:SS or D-HH:MM:SS."""
    days, _, clock = str(text).rpartition("-")
    parts = clock.split(":")
    if not isinstance(text, str) or len(parts) > 3 or not all(p.isdigit() for p in [*parts, days or "0"]):
        # Without quotes YAML reads 10:00:00 as a number to base 60.
        raise ValueError('must look like "02:00:00" (hours:minutes:seconds) or "1-00:00:00" (days first), in quotes')
    if any(int(part) >= 60 for part in parts[1:]) or (text.startswith("-")):
        raise ValueError('minutes and seconds go up to 59; write "02:00:00" (hours:minutes:seconds)')
    return text


def gres_name(text: str) -> str:
    """Check the name of a kind of GPU in Slurm's --gres, which its count is put behind."""
    if not re.fullmatch(r"[A-Za-z][\w.-]*(:(?!\d+$)[\w.-]+)?", text):
        raise ValueError("must be a name such as gpu or gpu:a100, without a count: that is gpus_per_node")
    return text


def sbatch_options(options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    """Check that options can stand in an sbatch script as nothing else, and leave alone what Turnout itself sets."""
    for key, value in options.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise ValueError(f"{key!r} is no sbatch option; write its long name, such as partition or mem-per-gpu")
        if key in OWNED:
            raise ValueError(f"{key} is set by Turnout; use {OWNED[key]} instead")
        if not str(value).isprintable():
            raise ValueError(f"{key}: {value!r} holds a line break or a control character; remove it")
    return options


def folder_name(name: str) -> str:
    """Check a sweep's name, which is also its directory's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("must be at most 100 letters, digits, dots, _ and -, the first a letter or digit; set name:")
    return name
