"""The options of a search: by what it goes, how long, and how settings are chosen and given up."""

import sys
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

from trainer.config.document import Settings, find_place, nest
from trainer.config.resolve import explain
from trainer.config.validators import Section
from trainer.errors import ConfigError

GP_MOST = 100  # settings that gp may try: to choose the 1,000th takes it 15 s, in which all other slots wait


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
    device_hours: PositiveFloat | None = None  # of trainings, after which no setting is begun
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
    if options.sampler == "gp" and options.most() > GP_MOST:
        raise ConfigError(
            f"{find_place(block, 'search.sampler', file)}: search.sampler: gp: takes ever longer to choose, so it "
            f"needs search.trials: {GP_MOST} or fewer; give that, or sampler: tpe"
        )
    return options
