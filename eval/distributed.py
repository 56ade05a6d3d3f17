"""Several processes that evaluate one trial: `torchrun --nproc-per-node 4 eval/main.py …`.

The main process decides, writes and reports. The others help with the metrics that are `shared`: these run on all
processes, and an error in one of them ends the metric on all.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from trainer.errors import ConfigError

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes; 1 unless torchrun or a similar launcher started this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this is the main process."""
    return rank() == 0


def shard() -> slice:
    """Return which of many pieces, in their order, this process works on."""
    return slice(rank(), None, world_size())


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group of processes, if there are several."""
    if world_size() == 1:
        yield
        return
    import torch.distributed

    # Messages are small and in host memory. The others wait as long as the main process does other work.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def broadcast(value: T) -> T:
    """Return the main process's value on every process."""
    if world_size() == 1:
        return value
    import torch.distributed

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def gather(compute: Callable[[], T]) -> list[T]:
    """Return the results of all processes, by rank, on every one; if one fails, all fail with the same message."""
    if world_size() == 1:
        return [compute()]
    import torch.distributed

    result: Any = None
    error: Exception | None = None
    try:
        result = compute()
    except Exception as problem:  # noqa: BLE001 - raised below, once the others know of it
        error = problem
    failure = None if error is None else (isinstance(error, ConfigError | ValueError), str(error))
    outcomes: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(outcomes, (result, failure))
    if error is not None:
        raise error
    for number, (_, failure) in enumerate(outcomes):
        if failure is not None:
            bad_input, message = failure
            raise (ConfigError(message) if bad_input else RuntimeError(f"process {number}: {message}"))
    return [result for result, _ in outcomes]
