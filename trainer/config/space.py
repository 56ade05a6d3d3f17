"""The space of a search: which keys it varies, and the values that it may give them."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import models
from trainer.config.axes import DISTRIBUTIONS, check_bounds, round_within
from trainer.config.document import AXES, Setting, Settings
from trainer.config.resolve import find_method
from trainer.config.sweep import get_hyperparameter, make_label, without, without_space
from trainer.errors import ConfigError

ENTRY = "trials"  # parameter of a study: the name of an entry of `trials:`
SEED = "train.seed"
# Keys outside `model:` that a search may vary: neither what is measured nor how long a trial may train.
SEARCHED = (
    "train.batch_size", "train.clip", "train.micro_batches", "train.precision",
    "data.balanced", "data.flip", "data.jitter",
)  # fmt: skip


Layer = TypeVar("Layer", Setting, "Dimension")


@dataclass(frozen=True)
class Dimension:
    """The values that a search may give to one key."""

    key: str
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
class Branch:
    """An entry of `trials:`, with all that is searched in it."""

    method: str
    settings: Settings  # of its own
    space: dict[str, Dimension]  # by parameter of the study: the key, after the entry's name if the entry has its own


def read_space(block: Settings, prefix: str) -> dict[str, Dimension]:
    """Return key → dimension of the keys below `prefix`, such as search.space; ConfigError."""
    space: dict[str, Dimension] = {}
    for written, setting in block.items():
        if not written.startswith(f"{prefix}."):
            continue
        key, _, distribution = written.removeprefix(f"{prefix}.").rpartition(".")
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
        space[key] = Dimension(key, distribution, setting.value, setting.place)
    return space


def read_branches(
    entries: Setting, shared: dict[str, Dimension], settings: Settings, overrides: Settings, file: str
) -> dict[str, Branch]:
    """Return name → entry of `trials:` with its own space, and what all share as far as it has that; ConfigError."""
    branches: dict[str, Branch] = {}
    if "method" in overrides:
        raise ConfigError(
            f"{overrides['method'].place}: method: a search over trials: has a method in each; leave it out"
        )
    for entry in entries.value:
        if axis := next((key for key in entry if key.split(".")[0] in AXES), ""):
            raise ConfigError(
                f"{entry[axis].place}: {axis}: beside search:, an entry of trials: has no axes; use space:"
            )
        method = find_method({"method": entry.get("method", settings.get("method", Setting(None, file)))}, file)
        fixed = without_space(entry)
        name = make_label(method, fixed)
        own = {key: d for key, d in read_space(entry, "space").items() if key not in overrides}
        common = {key: d for key, d in select_known(shared, method).items() if key not in own and key not in fixed}
        branches[name] = Branch(method, fixed, common | {f"{name} {key}": d for key, d in own.items()})
    return branches


def select_known(layer: dict[str, Layer], method: str) -> dict[str, Layer]:
    """Return a layer of settings or dimensions without the hyperparameters that a method does not have."""
    known = {f"model.{h.name}" for h in models.signature(method).hyperparameters}
    return without(layer, {key for key in map(get_hyperparameter, layer) if key.startswith("model.")} - known)
