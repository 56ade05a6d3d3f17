"""Jobs that start at the same moment on the same nodes connect only to their own processes."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import rendezvous
from jobs.backends.base import Allocation
from tests.slurm.cluster import Cluster
from tests.slurm.steps import check_ran_once, recorded
from tests.slurm.submitted import DANN, ROOT, Submitted, losses, weights
from trainer.runs import disk
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

STEPS, SEEDS = 5, [0, 1]
TRAIN = DANN["train"] | {"steps": STEPS}
SHAPES = {"nodes": {"nodes": 2}, "processes": {"processes_per_node": 2}}

# Run in a network namespace with few ports, until no port is left.
CROWD = """
import fcntl, socket, struct, sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from torch.distributed import TCPStore
from jobs.backends.base import Allocation
from jobs.rendezvous import rendezvous
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

JOBS, FIRST, LAST = 40, 40000, 40127
with socket.socket() as control:  # lo is down in a new network namespace
    fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{FIRST} {LAST}")
others, cleanup = [], ExitStack()
listener = cleanup.enter_context(socket.create_server(("", 20000), backlog=4096))

def take_any_port(kind):
    # Another program asks for any port: to listen, to reserve it as a launcher does, or to connect to a server.
    family = socket.AF_INET6 if kind == "six" else socket.AF_INET
    other = socket.socket(family)
    with suppress(OSError):
        if kind == "connects":
            other.connect(("127.0.0.1", 20000))
        else:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind != "plain"))
            other.bind(("", 0))
            if kind in ("listens", "six"):
                other.listen()
        others.append(other)
        return True
    return False

def publish_port(number):
    run = Path(sys.argv[1]) / str(number)
    run.mkdir()
    return cleanup.enter_context(rendezvous(RunDirectory(run), Allocation(str(number), Attempt(str(number)))))[1]

KINDS = ("plain", "reuse", "listens", "six", "connects")
with ThreadPoolExecutor(16) as pool:
    jobs = [(pool.submit(publish_port, n), pool.submit(take_any_port, KINDS[n % 5]))[0] for n in range(JOBS)]
    ports = [future.result() for future in jobs]
for kind in KINDS:
    while take_any_port(kind):
        pass
taken = {other.getsockname()[1] for other in others}
assert len(set(ports)) == JOBS, ports
assert not taken & set(ports), taken & set(ports)
assert taken | set(ports) == set(range(FIRST, LAST + 1)), "some ports were not taken"
# torchrun listens with such a store: it can listen on each of the ports, and it answers.
for port in ports:
    store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=20))
    store.set("port", str(port))
    assert store.get("port") == str(port).encode()
"""


@pytest.mark.usefixtures("slurm")
def test_the_kernel_assigns_a_published_port_to_no_other_program(tmp_path: Path) -> None:
    program = ["unshare", "--net", sys.executable, "-c", CROWD, str(tmp_path)]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no network namespace")
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_only_delays_the_first_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OSError(errno.ENOSPC, "No space left on device")]

    def write(file: Path, text: str) -> None:
        if errors:
            raise errors.pop()
        file.write_text(text)

    monkeypatch.setattr(rendezvous, "write_text", write)
    monkeypatch.setattr(disk, "RETRY_INTERVAL", 0)
    with rendezvous.rendezvous(RunDirectory(tmp_path), Allocation("5", Attempt("5.0"))) as (_, port):
        assert port
    assert not errors


def test_jobs_that_start_at_the_same_time_connect_to_their_own_processes(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    """Trials on two nodes and the same trials as two processes on one node have equal results, unless mixed up."""
    sweeps = []
    for name, shape in SHAPES.items():
        resources = DANN["resources"] | shape | {"slurm": {"hold": True}}
        content = DANN | {"name": name, "train": TRAIN, "resources": resources, "grid": {"train.seed": SEEDS}}
        sweeps.append(Submitted(cluster, tmp_path / name, data_root, content))
        sweeps[-1].submit()
    arrays = [sweep.submissions()[0]["arrays"][0]["id"] for sweep in sweeps]
    cluster.run("scontrol", "release", ",".join(arrays))
    ports = []
    for sweep in sweeps:
        for job, run in zip(sweep.jobs("train"), sweep.runs(), strict=True):
            sweep.wait_for(job, "COMPLETED")
            steps = sweep.steps / run.name
            assert check_ran_once(steps, 2, STEPS) == [0]
            (ranks,) = recorded(steps).values()
            (port,) = {line["port"] for lines in ranks.values() for line in lines}
            ports.append(port)
    print(f"ports {ports}")
    assert len(set(ports)) == len(sweeps) * len(SEEDS)
    results = [[(weights(run.path, STEPS), losses(run.path)) for run in sweep.runs()] for sweep in sweeps]
    assert results[0] == results[1]
    assert all(results[0][0] != other for other in results[0][1:])
    cluster.cancel_jobs()
