"""Bounds of a hyperparameter that are not numbers, checked where a sweep is submitted: nothing here imports torch."""

from pydantic import AfterValidator, ValidationInfo


def at_most(other: str) -> AfterValidator:
    """For an annotation: the value, if there is one, must not be above that of `other`, an earlier hyperparameter."""

    def check(value: float | None, given: ValidationInfo) -> float | None:
        limit = given.data.get(other)  # missing where it was refused itself
        if value is not None and limit is not None and value > limit:
            raise ValueError(f"must not be above model.{other}: {limit}")
        return value

    return AfterValidator(check)
