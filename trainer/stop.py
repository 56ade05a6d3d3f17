"""The request to stop: signals and a stop file set a flag, and all processes agree on it between two steps."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

LOOK = 0.5  # seconds between two looks at the stop file, which may lie on a slow shared disk


class StopRequest:
    """Installed before torch is imported, so that a warning which comes during start-up is not lost."""

    def __init__(self) -> None:
        self.asked, self.looked = False, 0.0
        self.file: Path | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the request; saving is left to the loop. A second Ctrl-C ends the process at once."""
        if self.asked and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.asked = True

    def watch(self, file: Path) -> None:
        """Take this file's existence for a request as well."""
        self.file = file

    def here(self) -> bool:
        """Whether this process was asked."""
        if self.file and not self.asked and time.monotonic() - self.looked > LOOK:
            self.asked = self.file.is_file()
            self.looked = time.monotonic()
        return self.asked

    def agreed(self, group: Any) -> bool:
        """Whether any process was asked: a collective over `group` (gloo: no GPU waits); None for one process."""
        if group is None:
            return self.here()
        import torch

        flag = torch.tensor(int(self.here()))
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=group)
        return bool(flag)
