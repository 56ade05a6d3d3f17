"""Read and check the steps that every process of a trial recorded; recorder/sitecustomize.py writes them."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

RECORDER = Path(__file__).with_name("recorder")


def recorded(folder: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Return attempt → rank → a line per step, in order; attempts are in the order in which Slurm ran them.

    `folder` is that of one trial. Attempts without a step are missing.
    """
    attempts: dict[str, dict[int, list[dict[str, Any]]]] = {}

    def numbers(file: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", file.name)]

    for file in sorted(folder.glob("*.rank*"), key=numbers):
        attempt, _, rank = file.name.rpartition(".rank")
        if lines := [json.loads(line) for line in file.read_text().splitlines()]:
            attempts.setdefault(attempt, {})[int(rank)] = lines
    return attempts


def check_ran_once(folder: Path, ranks: int, steps: int, crashed: Collection[str] = ()) -> list[int]:
    """Assert that every rank took steps 1 … `steps` once and in order; return the steps after which attempts started.

    Steps that the next attempt repeated do not count; only attempts in `crashed` may have such steps.
    """
    taken = {a: {r: [line["step"] for line in rows] for r, rows in of.items()} for a, of in recorded(folder).items()}
    starts = [min(own[0] for own in by_rank.values()) - 1 for by_rank in taken.values()]
    count: dict[int, list[int]] = {rank: [] for rank in range(ranks)}
    for (attempt, by_rank), start, end in zip(taken.items(), starts, [*starts[1:], steps], strict=True):
        assert set(by_rank) <= set(count), f"{attempt}: ranks {sorted(by_rank)} of {ranks}"
        for rank in count:
            own = by_rank.get(rank, [])
            assert own == list(range(start + 1, start + 1 + len(own))), f"{attempt}, rank {rank}: {own} after {start}"
            if attempt not in crashed:
                reached = start + len(own)
                assert reached == end, f"{attempt}, rank {rank}: reached {reached}, but the next started after {end}"
            count[rank] += [step for step in own if step <= end]
    for rank, own in count.items():
        assert own == list(range(1, steps + 1)), f"rank {rank}: {own}"
    return starts
