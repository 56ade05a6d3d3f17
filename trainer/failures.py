"""Why a training failed, in one line: what the failure marker of a process says."""

import re
from dataclasses import dataclass

from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.runs.disk import PASSING, disk_errno

BAD_INPUT = (ConfigError, DataError, CheckpointError)
# What torch.distributed reports of a process that has ended: gloo, NCCL, and the store that processes meet at.
LOST_PEER = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (closed|reset|refused|was likely closed)|Broken pipe|TCPStore|recvValue"
    r"|remote process has exited|failed to connect",
    re.IGNORECASE,
)
# torch's words for the CPU's memory and a GPU's, numpy's and Python's own.
NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Unable to allocate", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """What a process knows of its end."""

    cause: str  # exception, out of memory, disk error, or lost peer
    reason: str
    is_expected: bool  # the reason says all, so that a traceback would not help

    @property
    def is_consequence(self) -> bool:
        """Return whether another process failed first, whose reason is the one to show."""
        return self.cause == "lost peer"


def explain(error: Exception, processes: int) -> Failure:
    """Return the failure of one of `processes` that train together, from the exception that ended it."""
    text = " ".join(str(error).split())
    if disk_errno(error) in PASSING:
        return Failure("disk error", text, True)
    if isinstance(error, BAD_INPUT):
        return Failure("exception", str(error), True)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(text)):
        # torch appends how its allocator is tuned.
        sentences = ". ".join(re.split(r"\.\s+", text)[:2]).removesuffix(".")
        remedy = "lower train.batch_size or raise train.micro_batches"
        remedy += "" if "CUDA" in text else ", or raise resources.mem_gb"
        return Failure("out of memory", f"out of memory: {sentences or 'Python'}; {remedy}", False)
    if processes > 1 and isinstance(error, RuntimeError) and LOST_PEER.search(text):
        return Failure("lost peer", f"lost the connection to another process of the trial: {text}", False)
    return Failure("exception", f"{type(error).__name__}: {error}", False)
