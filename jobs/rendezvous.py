"""How the processes of a trial on several nodes find each other, and torchrun's command line for one node."""

import contextlib
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.backends.base import Allocation
from trainer.runs.atomic import write_text
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import persist

AGENT = Path(__file__).with_name("agent.py")
PUBLISH_TIMEOUT = 300.0  # seconds that a node waits for the first node's address


class RendezvousError(RuntimeError):
    """The first node published no address in time."""


@contextlib.contextmanager
def torchrun(run: RunDirectory, allocation: Allocation, processes: int) -> Iterator[list[str]]:
    """Yield the Python arguments that start this node's processes through torchrun; none for a single process.

    The rendezvous is static: it has no store of its own to lose, and ranks follow the order of the nodes.
    """
    if allocation.nodes * processes == 1:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="turnout-") as logs, rendezvous(run, allocation) as (address, port):
        yield [
            *(str(AGENT), "--nnodes", str(allocation.nodes), "--node-rank", str(allocation.node)),
            *("--nproc-per-node", str(processes), "--rdzv-backend", "static", "--rdzv-id", allocation.attempt),
            *("--master-addr", address, "--master-port", str(port), "--log-dir", logs),
            # The agent must survive Slurm's signals: it would kill its workers before they have saved.
            *("--signals-to-handle", "SIGINT"),
        ]


@contextlib.contextmanager
def rendezvous(run: RunDirectory, allocation: Allocation) -> Iterator[tuple[str, int]]:
    """Yield address and port of the first node, which picks a free port and publishes it in the run directory."""
    file = run.rendezvous_file(allocation.attempt, allocation.step)
    with socket.socket() as reservation:
        if allocation.node == 0:
            # While the socket is bound, the kernel gives this port to nobody who does not ask for it by number.
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind(("", 0))
            address = json.dumps([allocation.first_address(), reservation.getsockname()[1]])
            persist(lambda: write_text(file, address), str(file))
        deadline = time.monotonic() + PUBLISH_TIMEOUT
        while not file.exists():
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"the first node published no address in {PUBLISH_TIMEOUT:.0f} s; is {run.path} on a shared disk?"
                )
            time.sleep(0.1)
        name, port = json.loads(file.read_text())
        yield name, port
