"""Bounds of hyperparameters, checked where a sweep is submitted: nothing here imports torch."""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]  # none or some, but not all


def at_most(other: str) -> AfterValidator:
    """For an annotation: the value, if there is one, must not be above that of `other`, an earlier hyperparameter."""

    def check(value: float | None, given: ValidationInfo) -> float | None:
        limit = given.data.get(other)  # missing where it was refused itself
        if value is not None and limit is not None and value > limit:
            raise ValueError(f"must not be above model.{other}: {limit}")
        return value

    return AfterValidator(check)
