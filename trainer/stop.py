"""The request to stop: signals and a stop file set a flag, on which all processes agree between two steps."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

POLL_INTERVAL = 0.5  # seconds between two looks for the stop file, which may be on a slow shared disk


class StopRequest:
    """Remember whether this process was asked to stop.

    Install it before torch is imported, so that a signal during start-up is not lost.
    """

    def __init__(self) -> None:
        self.requested, self.last_poll = False, 0.0
        self.file: Path | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the request; the training loop saves. A second Ctrl-C ends the process at once."""
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.requested = True

    def watch(self, file: Path) -> None:
        """Take the existence of a file as a request, too."""
        self.file = file

    def is_requested(self) -> bool:
        """Return whether this process was asked to stop."""
        if self.file and not self.requested and time.monotonic() - self.last_poll > POLL_INTERVAL:
            self.requested = self.file.is_file()
            self.last_poll = time.monotonic()
        return self.requested

    def agreed(self, group: Any) -> bool:
        """Return whether any process of `group` was asked: a collective (gloo, so no GPU waits); None: this process."""
        if group is None:
            return self.is_requested()
        import torch

        flag = torch.tensor(int(self.is_requested()))
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=group)
        return bool(flag)
