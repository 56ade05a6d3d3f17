"""The block `search:` of a sweep file: what a search varies, how, and by which metric; without torch or Optuna."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from trainer.config.axes import DISTRIBUTIONS, check_bounds, round_within
from trainer.config.document import (
    AXES,
    Document,
    Setting,
    Settings,
    find_place,
    flatten,
    merge,
    nest,
    parse_overrides,
    read_settings,
)
from trainer.config.resolve import explain
from trainer.config.schema import Config
from trainer.config.sweep import Trial, expand
from trainer.config.validators import Section
from trainer.errors import ConfigError

SEED = "train.seed"
# Keys outside `model:` that a search may vary: neither what is measured nor how long a trial may train.
SEARCHED = (
    "train.batch_size", "train.clip", "train.micro_batches", "train.precision",
    "data.balanced", "data.flip", "data.jitter",
)  # fmt: skip


class Pruner(Section):
    """Which trials are stopped before their last step; the resource is training steps."""

    name: Literal["asha", "hyperband", "median", "none"] = "none"
    first: PositiveInt | None = None  # step of the first rung, at which trials are compared
    factor: Annotated[int, Field(ge=2)] = 3  # ratio of a rung's step to that of the rung before

    @model_validator(mode="after")
    def require_first(self) -> "Pruner":
        """Refuse a pruner without a first rung."""
        if self.name != "none" and self.first is None:
            raise ValueError(f"{self.name} needs the step of its first rung: {{name: {self.name}, first: 500}}")
        return self


def read_pruner(value: Any) -> Any:
    """Read `pruner: none` as {name: none}."""
    return {"name": value} if isinstance(value, str) else value


class SearchOptions(Section):
    """The block `search:` without its space."""

    metric: str  # measured on the validation split, such as validation/accuracy/source
    direction: Literal["maximize", "minimize"] | None = None  # default: the metric's own
    trials: PositiveInt | None = None  # settings to try
    device_hours: PositiveFloat | None = None  # of trainings and measurements, after which no setting is begun
    sampler: Literal["tpe", "gp", "cmaes", "qmc", "random"] = "tpe"
    pruner: Annotated[Pruner, BeforeValidator(read_pruner)] = Pruner()
    seed: NonNegativeInt = 0  # of the sampler
    enqueue: list[dict[str, Any]] = Field(default_factory=list)  # settings to try first

    def most(self) -> int:
        """Return how many settings may be tried, if device-hours last."""
        return self.trials or sys.maxsize

    def budget(self) -> str:
        """Return the budget in words."""
        hours = f"{self.device_hours:g} device-hours" if self.device_hours else ""
        return " or ".join(filter(None, [f"{self.trials} settings" if self.trials else "", hours]))


@dataclass(frozen=True)
class Dimension:
    """The values that a search may give to one key."""

    distribution: str  # loguniform, uniform, integer or choice
    bounds: list[Any]  # [low, high], or the values of a choice
    place: str

    def encode(self, value: Any) -> Any:
        """Return the parameter of the study for a value: the value, or JSON for a list; ValueError if it is outside."""
        if self.distribution == "choice":
            if value not in self.bounds:
                raise ValueError(f"must be one of {self.bounds}")
            return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)
        low, high = (float(bound) for bound in self.bounds)
        if isinstance(value, bool) or not low <= float(value) <= high:
            raise ValueError(f"must be in {self.bounds}")
        return int(value) if self.distribution == "integer" else float(value)

    def decode(self, parameter: Any) -> Any:
        """Return the value of a parameter of the study."""
        if self.distribution == "choice":
            return next(value for value in self.bounds if self.encode(value) == parameter)
        if self.distribution == "integer":
            return int(parameter)
        return round_within(parameter, *(float(bound) for bound in self.bounds))

    def corners(self) -> list[Any]:
        """Return the values of a choice, or the two bounds."""
        return self.bounds if self.distribution == "choice" else [self.decode(self.encode(b)) for b in self.bounds]


@dataclass(frozen=True)
class Search:
    """An adaptive search: settings that all trials share, the space of those that vary, and how they are chosen."""

    options: SearchOptions
    space: dict[str, Dimension]
    settings: Settings  # of the file, over the preset's
    overrides: Settings  # of the command line
    file: str
    metric_place: str = field(default="", compare=False)  # where search.metric was written

    def trials(self, parameters: Document) -> list[Trial]:
        """Return the trials of a setting, one for each seed; ConfigError if a method refuses it."""
        values = {key: Setting(d.decode(parameters[key]), d.place) for key, d in self.space.items()}
        return expand(self.settings, self.overrides | values, self.file)

    def template(self) -> Config:
        """Return the configuration of the fixed settings, which also has defaults of what is searched."""
        return self.trials(self.first_corner())[0].config

    def first_corner(self) -> Document:
        """Return the parameters of one corner of the space."""
        return {key: dimension.encode(dimension.corners()[0]) for key, dimension in self.space.items()}

    def starting_points(self) -> list[Document]:
        """Return the parameters of the settings to try first."""
        return [{key: self.space[key].encode(v) for key, v in flatten(p).items()} for p in self.options.enqueue]

    def rungs(self) -> list[int]:
        """Return the steps at which a trial is measured; the last one is train.steps."""
        steps, pruner, rungs = self.template().train.steps, self.options.pruner, []
        step = pruner.first if pruner.name != "none" and pruner.first else steps
        while step < steps:
            rungs.append(step)
            step *= pruner.factor
        return [*rungs, steps]

    def to_document(self) -> Document:
        """Return all of this as JSON, for jobs that do not see the sweep file."""
        return {
            "options": self.options.model_dump(),
            "space": {key: [d.distribution, d.bounds, d.place] for key, d in self.space.items()},
            "settings": {key: [s.value, s.place] for key, s in self.settings.items()},
            "overrides": {key: [s.value, s.place] for key, s in self.overrides.items()},
            "file": self.file,
        }

    @staticmethod
    def from_document(document: Document) -> "Search":
        """Return the search that `to_document` returned."""
        settings = {key: Setting(*s) for key, s in document["settings"].items()}
        overrides = {key: Setting(*s) for key, s in document["overrides"].items()}
        space = {key: Dimension(*d) for key, d in document["space"].items()}
        return Search(SearchOptions(**document["options"]), space, settings, overrides, document["file"])


def load_search(path: Path, words: list[str], defaults: Settings | None = None) -> Search | None:
    """Return the search of a sweep file over `defaults` and under `key=value` words; None without one; ConfigError."""
    written = {"name": Setting(path.stem, str(path))} | read_settings(path)
    layers = (merge(defaults or {}, written), parse_overrides(words))
    block = merge(*({k: s for k, s in layer.items() if k.split(".")[0] == "search"} for layer in layers))
    if not block:
        return None
    settings, overrides = ({k: s for k, s in layer.items() if k.split(".")[0] != "search"} for layer in layers)
    check_axes(settings, overrides)
    space = {key: d for key, d in read_space(block, str(path)).items() if key not in overrides}
    if not space:
        raise ConfigError(f"command line: {min(overrides)}: no key of search.space is left to search; leave one out")
    metric_place = find_place(block, "search.metric", str(path))
    search = Search(read_options(block, str(path)), space, settings, overrides, str(path), metric_place)
    check_starting_points(search, find_place(block, "search.enqueue", str(path)))
    check_space(search)
    first, steps = search.options.pruner.first, search.template().train.steps
    if search.options.pruner.name != "none" and first is not None and first >= steps:
        raise ConfigError(
            f"{find_place(block, 'search.pruner.first', str(path))}: search.pruner.first: {first}: the first rung must "
            f"be before the last step of a trial, train.steps: {steps}; choose a smaller one"
        )
    return search


def read_options(block: Settings, file: str) -> SearchOptions:
    """Return the options of a `search:` block; ConfigError."""
    document: Any = nest(block)["search"]
    try:
        if not isinstance(document, dict):
            raise ConfigError(f"{block['search'].place}: search: {document!r}: must be a mapping of keys to values")
        options = SearchOptions.model_validate({key: value for key, value in document.items() if key != "space"})
    except ValidationError as error:
        key, problem = explain(error, SearchOptions)
        raise ConfigError(f"{find_place(block, f'search.{key}', file)}: search.{key}: {problem}") from None
    if options.trials is None and options.device_hours is None:
        place = find_place(block, "search", file)
        raise ConfigError(f"{place}: search: has no budget; give trials: 24, device_hours: 10, or both")
    return options


def read_space(block: Settings, file: str) -> dict[str, Dimension]:
    """Return key → dimension of `search.space`; ConfigError."""
    space: dict[str, Dimension] = {}
    prefix = "search.space."
    for written, setting in block.items():
        if not written.startswith(prefix):
            continue
        key, _, distribution = written.removeprefix(prefix).rpartition(".")
        where = f"{setting.place}: {written}: {setting.value!r}"
        if distribution not in DISTRIBUTIONS or not key:
            raise ConfigError(f"{where}: must be one of {{{' | '.join(DISTRIBUTIONS)}: [low, high]}}")
        if key in space:
            raise ConfigError(f"{where}: {key} has two distributions; remove one")
        if not key.startswith("model.") and key not in SEARCHED:
            remedy = "cross the search with it: grid: {train.seed: [0, 1, 2]}" if key == SEED else "set it in the file"
            raise ConfigError(f"{where}: {key} is not searched, only model.* and {', '.join(SEARCHED)} are; {remedy}")
        try:
            if not isinstance(setting.value, list):
                raise ValueError("must be a list")
            check_bounds(distribution, setting.value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from None
        space[key] = Dimension(distribution, setting.value, setting.place)
    if not space:
        place = find_place(block, "search.space", file)
        raise ConfigError(f"{place}: search.space: is empty; add a key: model.lr: {{loguniform: [1e-5, 1e-2]}}")
    return space


def check_axes(settings: Settings, overrides: Settings) -> None:
    """Refuse other axes than seeds beside a search; ConfigError."""
    for key, setting in settings.items():
        if key.split(".")[0] in (*AXES, "trials") and key != f"grid.{SEED}":
            raise ConfigError(
                f"{setting.place}: {key}: beside search:, only seeds are crossed, grid: {{{SEED}: [0, 1, 2]}}; "
                "put other keys into search.space, as a choice"
            )
    for key, setting in overrides.items():
        if isinstance(setting.value, list) and key == "method":
            raise ConfigError(f"{setting.place}: {key}: {setting.value}: a search is of one method; give one")


def check_space(search: Search) -> None:
    """Resolve the corners of the space and the settings to try first; ConfigError if a value is refused."""
    settings = [without_seed(config) for config in list_checked(search)]
    seeds = search.trials(search.first_corner())
    if different := [t.label for t, setting in zip(seeds, settings, strict=False) if setting != settings[0]]:
        raise ConfigError(
            f"{search.file}: beside search:, {seeds[0].label} and {different[0]} differ in more than {SEED}; "
            "give one value, or put the key into search.space"
        )


def without_seed(config: Config) -> Document:
    """Return a configuration without its seed."""
    return {key: value for key, value in flatten(config.model_dump()).items() if key != SEED}


def list_checked(search: Search) -> list[Config]:
    """Return what is checked before a search begins: corners that differ from the first in one key, starting points."""
    first = search.first_corner()
    corners = [{key: d.encode(value)} for key, d in search.space.items() for value in d.corners()[1:]]
    points = [first, *(first | changes for changes in (*corners, *search.starting_points()))]
    return [trial.config for point in points for trial in search.trials(point)]


def check_starting_points(search: Search, place: str) -> None:
    """Check that the settings to try first are in the space, and not too many; ConfigError."""
    for number, point in enumerate(search.options.enqueue):
        for key, value in flatten(point).items():
            where = f"{place}: search.enqueue.{number}: {key}: {value!r}"
            if key not in search.space:
                raise ConfigError(f"{where}: is not in search.space, which has {', '.join(search.space)}")
            try:
                search.space[key].encode(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{where}: {error}") from None
    count, budget = len(search.options.enqueue), search.options.most()
    if count > budget:
        raise ConfigError(f"{place}: search.enqueue: {count} settings are more than search.trials: {budget}")
