"""What may stand in a YAML, and what a trial resolves to; importable without torch, so that checking is instant."""

import hashlib
import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)

import models
from trainer.config.validators import Section, duration, folder_name, gres_name, sbatch_options
from trainer.data import registry
from trainer.errors import ConfigError, check_known

Document = dict[str, Any]  # a YAML mapping as read
SWEEP_KEYS = (
    "grid",
    "zip",
    "random",
    "trials",
)  # what trainer/config/sweep.py takes out of a file before it is resolved
# What cannot change the trained weights, and so is no part of a trial's identity: True, or keys of a section.
OUTSIDE: dict[str, Any] = {
    "name": True,
    "data": {"root"},
    "train": {"log_every", "checkpoint_every", "export_every"},
    "eval": True,
    "resources": True,
}


def known_metric(name: str) -> str:
    """Check that eval/ has a file of that name with an `evaluate`; ValueError with the nearest name otherwise."""
    return check_known(name, metrics(), "metric")


def known_dataset(name: str) -> str:
    """Check that trainer/data/registry.py lists the set; ValueError with the nearest name otherwise."""
    return registry.get(name).name


Dataset = Annotated[str, AfterValidator(known_dataset)]
Metric = Annotated[str, AfterValidator(known_metric)]


class Data(Section):
    """Which sets: one `dataset`, or a `source` with labels and a `target` without."""

    dataset: Dataset | None = None
    source: Dataset | None = None
    target: Dataset | None = None
    size: PositiveInt | None = None  # pixels; resize every image to it
    channels: Literal[1, 3] | None = None  # default: 3 as soon as one of the sets is in colour
    balanced: bool = False  # each class as often as any other in the batches of a domain whose labels are read
    flip: bool = False  # mirror half of the training images, left to right
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0  # largest change of size, slant and place of these, as a share
    root: str | None = None  # default: $TURNOUT_DATA, else ~/.cache/turnout

    def sets(self) -> dict[str, str]:
        """Domain -> name of the set; the domain of a lone `dataset` is ''."""
        pairs = {"": self.dataset, "source": self.source, "target": self.target}
        return {domain: name for domain, name in pairs.items() if name is not None}

    def shape(self) -> tuple[int, int, int]:
        """(channels, size, classes) of every image and label; ValueError where the sets do not agree."""
        found = [registry.get(name) for name in self.sets().values()]
        sizes, classes = {d.size for d in found}, {d.classes for d in found}
        if self.size is None and (shapeless := [d.name for d in found if d.size is None]):
            raise ValueError(f"{shapeless[0]} has no size of its own; set data.size")
        names = " and ".join(f"{d.name} ({d.size} px, {d.classes} classes)" for d in found)
        if len(classes) != 1:
            raise ValueError(f"{names} have different classes; choose sets that share them")
        if self.size is None and len(sizes) != 1:
            raise ValueError(f"{names} differ in size; set data.size")
        return self.channels or max(d.channels for d in found), self.size or sizes.pop() or 0, classes.pop()


class Train(Section):
    """How long, how large, how precise."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64  # per domain, over all processes
    micro_batches: PositiveInt = 1  # parts of a process's share that are backpropagated one after the other
    seed: NonNegativeInt = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: NonNegativeFloat = 0.0  # largest gradient norm of an update; 0: not clipped
    log_every: PositiveInt = 50  # steps
    checkpoint_every: PositiveInt = 500  # steps
    export_every: NonNegativeInt = 0  # steps between weights kept for evaluation; 0: only the last


def known_plugin(name: str) -> str:
    """Check that models/ has a method of that name; ValueError with the nearest name otherwise."""
    return check_known(name, models.names(), "method")


def span(low_high: tuple[float, float]) -> tuple[float, float]:
    """Check that the first number is not above the second."""
    if low_high[0] > low_high[1]:
        raise ValueError("must be [lowest, highest]")
    return low_high


class Eval(Section):
    """What the evaluation job measures once training is done."""

    metrics: list[Metric] = Field(default_factory=list)
    # Method -> lowest and highest accuracy/target in public reports, shown beside ours.
    reference: dict[
        Annotated[str, AfterValidator(known_plugin)], Annotated[tuple[float, float], AfterValidator(span)]
    ] = Field(default_factory=dict)


class Resources(Section):
    """What a trial asks of the cluster; no part of its identity."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 1
    gres: Annotated[str, AfterValidator(gres_name)] | None = None  # as --gres=<gres>:N, such as gpu:a100
    processes_per_node: PositiveInt | None = None  # default: one per GPU, one where there is none
    cpus_per_gpu: PositiveInt = 4
    mem_gb: PositiveFloat = 16
    time: Annotated[str, BeforeValidator(duration)] = "02:00:00"
    signal_delay: PositiveInt = 120  # seconds before the time limit at which a trial is told to save
    max_requeues: NonNegativeInt = 10  # times that a trial may reach its time limit and be given another turn
    max_parallel: PositiveInt = 20  # trials of a sweep that run at the same time on the cluster
    # Further sbatch options, such as {partition: gpu, account: vision}.
    slurm: Annotated[dict[str, str | int | bool], AfterValidator(sbatch_options)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def leave_time_to_save(self) -> "Resources":
        """A warning that comes as soon as the trial starts would have it requeued for ever."""
        if 60 * self.minutes() <= self.signal_delay:
            raise ValueError(
                f"time {self.time!r} is over before signal_delay ({self.signal_delay} s) has begun; "
                "give more time or a smaller signal_delay"
            )
        return self

    def minutes(self) -> int:
        """The time limit in minutes, rounded up."""
        days, _, clock = self.time.rpartition("-")
        parts = [int(p) for p in clock.split(":")]
        if days:  # D-HH[:MM[:SS]]
            hours, mins, seconds = (*parts, 0, 0)[:3]
        else:  # MM, MM:SS or HH:MM:SS
            hours, mins, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
        return max(1, math.ceil((int(days or 0) * 24 + hours) * 60 + mins + seconds / 60))

    def processes(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class Config(Section):
    """A trial, resolved: nothing is left to defaults that could change under it."""

    name: Annotated[str, AfterValidator(folder_name)]
    method: str
    model: dict[str, Any] = Field(default_factory=dict)
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    resources: Resources = Resources()

    def identity(self) -> str:
        """8 hex digits that change whenever anything that can change the trained weights does."""
        content = self.model_dump(mode="json", exclude=OUTSIDE)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The text of a run directory's config.yaml."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=yaml.CSafeDumper, sort_keys=False)


def identifies(key: str) -> bool:
    """Whether a dotted key is part of a trial's identity."""
    block, _, name = key.partition(".")
    outside = OUTSIDE.get(block, ())
    return outside is not True and name not in outside


@lru_cache
def metrics() -> list[str]:
    """Names of the evaluations: the files of eval/ that define `evaluate`."""
    folder = Path(__file__).parents[2] / "eval" / "metrics"
    return sorted(p.stem for p in folder.glob("*.py") if "\ndef evaluate(" in p.read_text())


def resolve(document: Document, origin: str | Callable[[str], str]) -> Config:
    """Fill in every default and check every value; ConfigError names the key, the remedy and where the key stands:
    `origin`, or what it says of the key."""
    where = (lambda key: origin) if isinstance(origin, str) else origin
    method = known_method(document.get("method"), where)
    try:
        config = Config.model_validate(document)
        block = model_schema(method).model_validate(config.model)
    except ValidationError as error:
        inside = "model" if error.title != "Config" else ""
        schema = Config if error.title == "Config" else model_schema(method)
        key, problem = explain(error, schema, inside)
        raise ConfigError(f"{where(key)}: {key}: {problem}") from None
    config = config.model_copy(update={"model": block.model_dump(mode="json")})
    try:
        check(config)
    except ValueError as error:
        raise ConfigError(f"{where(str(error).partition(':')[0])}: {error}") from None
    channels, size, _ = config.data.shape()
    return config.model_copy(update={"data": config.data.model_copy(update={"channels": channels, "size": size})})


def known_method(name: Any, where: Callable[[str], str]) -> str:
    """Check that models/ has a method of that name; ConfigError with the nearest name otherwise."""
    try:
        if name is None:
            raise ValueError(f"missing; give one of {', '.join(models.names())}")
        model_schema(str(name))
        return str(name)
    except ValueError as error:
        raise ConfigError(f"{where('method')}: method: {error}") from None


def check(config: Config) -> None:
    """Check what concerns several keys at once; ValueError."""
    reads, sets = models.signature(config.method).reads, config.data.sets()
    for key in reads:
        domain = key.rpartition("_")[0]
        if domain not in sets:
            given = ", ".join(f"{d or 'dataset'}: {n}" for d, n in sets.items()) or "nothing"
            raise ValueError(f"data: {config.method} reads {key!r}: give data.{domain or 'dataset'} (given: {given})")
    try:
        config.data.shape()
    except ValueError as error:
        raise ValueError(f"data: {error}") from None
    if config.data.source is not None and config.data.source == config.data.target:
        raise ValueError(
            f"data.target: {config.data.target!r} is the source, too, so there is nothing to adapt to; give another set"
        )
    if config.data.balanced and not any(key.endswith("labels") for key in reads):
        raise ValueError(
            f"data.balanced: {config.method} reads no labels, so classes cannot be drawn as often; leave it out"
        )
    parts = config.resources.nodes * config.resources.processes() * config.train.micro_batches
    check_divides(config.train.batch_size, parts)


def check_divides(batch_size: int, parts: int) -> None:
    """ValueError unless the global batch can be cut into `parts` = processes × micro-batches."""
    if batch_size % parts:
        near = max(1, round(batch_size / parts)) * parts
        raise ValueError(
            f"train.batch_size: {batch_size} does not divide by {parts} (processes × train.micro_batches); "
            f"the nearest that does is {near}"
        )


@lru_cache
def model_schema(method: str) -> type[BaseModel]:
    """The schema of the `model:` block, the signature of the method's constructor; ValueError if there is no method
    of that name."""
    check_known(method, models.names(), "method")
    fields: Any = {h.name: (h.annotation, h.default) for h in models.signature(method).hyperparameters}
    return create_model(f"{method} model", __base__=Section, **fields)


def takes_list(method: str, key: str) -> bool:
    """Whether the value of a dotted key is itself a list."""
    block, _, name = key.partition(".")
    section = Config.model_fields.get(block)
    schema = model_schema(method) if block == "model" else section.annotation if section else None
    field = getattr(schema, "model_fields", {}).get(name)
    return field is not None and any(
        get_origin(a) in (list, tuple) for a in (field.annotation, *get_args(field.annotation))
    )


def explain(error: ValidationError, schema: type[BaseModel], inside: str = "") -> tuple[str, str]:
    """The dotted key of the first of pydantic's errors, and `value: what is wrong; what would be right`."""
    first = error.errors(include_url=False)[0]
    # Pydantic puts in what it tried: a validator, a member of a union, the key rather than its value.
    path = [str(p) for p in first["loc"] if not str(p).startswith("function-") and p not in ("str", "int", "[key]")]
    key = ".".join([inside, *path] if inside else path)
    if first["type"] == "extra_forbidden":
        for part in path[:-1]:
            schema = schema.model_fields[part].annotation  # type: ignore[assignment]
        valid = list(schema.model_fields) + (["base", *SWEEP_KEYS] if schema is Config else [])
        try:
            check_known(path[-1], valid, "key")
        except ValueError as unknown:
            return key, str(unknown)
        return key, "must not stand here; it belongs to the top of a sweep file"
    if first["type"] == "missing":
        return key, "missing; give it a value"
    if first["type"].endswith("_type") and first["type"] in ("model_type", "dict_type"):
        return key, f"{first['input']!r}: must be a mapping of keys to values"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], str) and repr(first["input"]) in message else f"{first['input']!r}: "
    return key, f"{value}{message[:1].lower()}{message[1:]}"
