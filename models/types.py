"""Share annotations of hyperparameters among methods, without importing torch."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
DigitNet: TypeAlias = Literal["lenet", "slim", "compact", "svhn", "usps", "deep", "gta"]  # in models/nets/digits.py
UNetName: TypeAlias = Literal["context_unet", "attention_unet"]  # in models/nets/
Solver: TypeAlias = Literal["euler", "heun"]  # of models/sampling.py
Augment: TypeAlias = Literal["none", "color", "translation", "color+translation", "color+translation+cutout"]
StrongAugment: TypeAlias = Literal["none", "stretch", "invert+stretch", "invert+stretch+cutout"]
OptimizerName: TypeAlias = Literal["sgd", "adam"]
# Learning-rate schedules of models/optim.py.
ClassifierSchedule: TypeAlias = Literal["inverse", "cosine", "constant", "multistep"]
CooldownSchedule: TypeAlias = Literal["cooldown", "cosine", "constant"]


def at_most(other: str) -> AfterValidator:
    """Return a check for an annotation: the value is None or at most that of an earlier hyperparameter."""

    def check(value: float | None, info: ValidationInfo) -> float | None:
        limit = info.data.get(other)  # missing if it is invalid itself
        if value is not None and limit is not None and value > limit:
            raise ValueError(f"must not be above model.{other}: {limit}")
        return value

    return AfterValidator(check)
