"""The check of recorded steps in tests/slurm/steps.py detects missing and repeated steps."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.slurm.steps import check_ran_once


def record(folder: Path, **attempts: Sequence[Sequence[int]]) -> Path:
    """Write steps of ranks 0 and 1 as recorder/sitecustomize.py does."""
    folder.mkdir()
    for attempt, ranks in attempts.items():
        for rank, steps in enumerate(ranks):
            lines = [json.dumps({"step": step}) + "\n" for step in steps]
            (folder / f"{attempt.lstrip('a').replace('_', '.')}.rank{rank}").write_text("".join(lines))
    return folder


def to(last: int, after: int = 0) -> range:
    return range(after + 1, last + 1)


def test_only_crashed_attempts_may_have_steps_that_were_repeated(tmp_path: Path) -> None:
    folder = record(
        tmp_path / "good",
        a9_0=(to(5), to(5)),
        a9_10=(to(14, 10), to(15, 10)),
        a9_2=(to(10, 5), to(10, 5)),
        a11_0=(to(20, 12), to(20, 12)),
    )
    assert check_ran_once(folder, 2, 20, crashed=["9.10"]) == [0, 5, 10, 12]
    with pytest.raises(AssertionError, match=r"9\.10, rank 0: reached 14, but the next started after 12"):
        check_ran_once(folder, 2, 20)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((to(5), to(5)), (to(9, 5), to(9, 5))),  # the last step is missing
        ((to(5), to(4)), (to(10, 5), to(10, 5))),  # one rank skipped a step
        ((to(5), to(6)), (to(10, 5), to(10, 5))),  # one rank took a step twice
        ((to(5), to(5)), (to(10, 5), to(10, 6))),  # one rank started a step later
        ((to(5), to(5)), (to(10, 5), to(0))),  # one rank took no step
        ((to(5), to(5)), (range(6, 11), [6, 7, 7, 8, 9, 10])),
        ((to(5), to(5)), (to(10, 4), to(10, 4))),  # both took a step twice
        ((to(5), to(5)), (to(10, 6), to(10, 6))),  # both skipped one
    ],
)
def test_missing_and_repeated_steps_are_detected(
    tmp_path: Path, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]
) -> None:
    with pytest.raises(AssertionError, match="rank"):
        check_ran_once(record(tmp_path / "bad", a7_0=first, a7_1=second), 2, 10)
