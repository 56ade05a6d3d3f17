"""Several processes that evaluate one run: `torchrun --nproc-per-node 4 eval/main.py …`.

The first one decides, writes and reports. The others share in what is worth it, an evaluation whose file says
`SHARED = True`: its `evaluate` runs on all of them, and what one finds wrong there ends it on all.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from trainer.errors import ConfigError

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """How many there are; 1 unless torchrun or its like started this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    return rank() == 0


def share() -> slice:
    """Which of many pieces, in their order, are this process's."""
    return slice(rank(), None, count())


@contextmanager
def joined() -> Iterator[None]:
    """Be in the group, if there is one."""
    if count() == 1:
        yield
        return
    import torch.distributed

    # What is exchanged is small and lies on the host. The others wait as long as the first one does other things.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def agree(value: T) -> T:
    """The first process's value, on every one."""
    if count() == 1:
        return value
    import torch.distributed

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def together(make: Callable[[], T]) -> list[T]:
    """What each process makes, by rank, on every one; where one fails so do all, with the same message."""
    if count() == 1:
        return [make()]
    import torch.distributed

    made: Any = None
    error: Exception | None = None
    try:
        made = make()
    except Exception as problem:  # noqa: BLE001 - raised below, once the others know of it
        error = problem
    found: list[Any] = [None] * count()
    theirs = None if error is None else (isinstance(error, ConfigError | ValueError), str(error))
    torch.distributed.all_gather_object(found, (made, theirs))
    if error is not None:
        raise error
    for number, (_, failure) in enumerate(found):
        if failure is not None:
            bad_input, message = failure
            raise (ConfigError(message) if bad_input else RuntimeError(f"process {number}: {message}"))
    return [made for made, _ in found]
