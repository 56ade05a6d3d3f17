"""A private real Slurm on this host: munged, mariadbd, slurmdbd, slurmctld and some slurmd in one temporary directory.

In a test: `with Cluster() as cluster: cluster.run("sbatch", …)`. By hand: `python tests/slurm/cluster.py --help`.
"""

import argparse
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # Debian keeps the daemons in sbin
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client", "munged": "munge"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
PROGRAMS = {"slurmctld", "slurmd", "slurmstepd", "slurmdbd", "munged", "mariadbd", "srun", "salloc", "sbatch"}
INHERITED = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SCANCEL_", "SQUEUE_", "SACCT_", "SINFO_")
PORTS = ("held", "slurmctld", "slurmdbd", "mariadbd")  # the first ports of a cluster's block; one per slurmd follows
BLOCK = 32


def missing(accounting: bool = True) -> list[str]:
    """Debian packages to install before a Cluster can start, sorted; empty if nothing is missing."""
    wanted = PACKAGES | ACCOUNTING_PACKAGES if accounting else PACKAGES
    return sorted({package for program, package in wanted.items() if shutil.which(program, path=PATH) is None})


def not_installed(packages: list[str]) -> str:
    """What to tell who lacks `packages`."""
    return f"Slurm is not installed: apt-get install -y --no-install-recommends {' '.join(packages)}"


def knob(default: T, meaning: str) -> T:
    """A field of Cluster that is also an option of the command line."""
    value: T = field(default=default, metadata={"help": meaning})
    return value


@dataclass(eq=False)
class Cluster:
    """A context manager: inside it, Slurm runs and every node is idle; after it, no process and no file is left.

    Partitions, both over all nodes: `main` (default, preemptible, its jobs are requeued) and `high` (preempts main).
    Raises RuntimeError with the tail of the logs if a daemon does not start. If this very process is killed, a
    small process that waits for its end cleans up in its place.
    """

    nodes: int = knob(2, "named n1, n2, …; all of them are this host")
    cpus: int = knob(8, "per node; need not exist")
    gpus: int = knob(2, "per node; fake: counted and shared out, with nothing behind them")
    memory: int = knob(8000, "MB per node; need not exist")
    accounting: bool = knob(True, "run slurmdbd on a MariaDB, so that sacct answers")
    grace_seconds: int = knob(20, "from the first signal of a preemption to the end of the job")
    cred_expire: int = knob(5, "a requeued job may start this many seconds later, at least 5")
    kill_wait: int = knob(5, "seconds from SIGTERM to SIGKILL")
    slurmd_timeout: int = knob(10, "seconds until a node that does not answer is down")
    preempt_user_signal: bool = knob(True, "a preemption begins with the job's own --signal instead of SIGTERM")
    max_array_size: int = knob(1001, "indices of job arrays stay below this")
    over_time_limit: int = knob(0, "minutes that a job may run beyond its time limit")
    min_job_age: int = knob(300, "seconds for which squeue remembers an ended job")
    settings: Mapping[str, object] = field(default_factory=dict)  # of slurm.conf; they win over the above
    root: Path = field(init=False, repr=False)
    environment: dict[str, str] = field(init=False, repr=False)  # of every process that is to talk to this cluster

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= BLOCK - len(PORTS):
            raise ValueError(f"nodes must be in 1 … {BLOCK - len(PORTS)}, not {self.nodes}")
        if self.cred_expire < 5:
            raise ValueError(f"cred_expire must be at least 5, not {self.cred_expire}: Slurm would take 120 instead")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._held: socket.socket | None = None

    def __enter__(self) -> "Cluster":
        if len(tempfile.gettempdir()) > 48:
            raise ValueError(f"{tempfile.gettempdir()} is too long for the sockets below it: set TMPDIR")
        self.root = Path(tempfile.mkdtemp(prefix="turnout-slurm-"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
        self.environment = inherited | {"SLURM_CONF": f"{self.root}/slurm.conf", "PATH": PATH}
        try:
            guard = [sys.executable, "-I", str(Path(__file__).resolve()), "--end", str(self.root)]
            self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, *argv: str | Path, check: bool = True, timeout: float = 60, cwd: Path | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in `environment`, its output captured as text.

        Raises RuntimeError with that output if it fails and `check`, subprocess.TimeoutExpired after `timeout` s.
        """
        command = [str(word) for word in argv]
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, input=stdin, timeout=timeout, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait(self, predicate: Callable[[], T], timeout: float, what: str) -> T:
        """Poll until `predicate()` is true and return its value; after `timeout` s raise TimeoutError with the logs."""
        give_up = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > give_up:
                raise TimeoutError(f"waited {timeout:g} s for {what}; the last answer was {value!r}\n{self.logs()}")
            time.sleep(0.05)
        return value

    def job_states(self, job_id: int | str) -> dict[str, str]:
        """State of each job: `{"7": "RUNNING"}` or, of an array, `{"7_0": "COMPLETED", …}`; {} for an unknown id."""
        rows = ""
        if self.accounting:
            rows = self.run("sacct", "-XnP", "-j", str(job_id), "-o", "JobID,State", check=False).stdout
        # squeue forgets and sacct lags behind: ask both and let squeue win. Without a controller it tries for 20 s.
        if "slurmctld" in self.pids():
            rows += self.run("squeue", "-hr", "-t", "all", "-j", str(job_id), "-o", "%i|%T", check=False).stdout
        states = dict(row.split("|") for row in rows.splitlines())
        return {job: state.split()[0] for job, state in states.items() if "[" not in job}  # "CANCELLED by 0", "7_[1-3]"

    def cancel_jobs(self, timeout: float = 60) -> None:
        """Cancel every job and wait until the nodes are rid of them."""
        self.run("scancel", "--user", str(os.getuid()), check=False, timeout=timeout)
        self.wait(lambda: not self.run("squeue", "-h", timeout=timeout).stdout, timeout, "the end of cancelled jobs")

    def pids(self) -> dict[str, int]:
        """The daemons that run, as name -> pid: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, …"""
        return {name: daemon.pid for name, daemon in self._daemons.items() if daemon.poll() is None}

    def kill_daemon(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon and wait for its end; job steps live on, as they do when a daemon crashes."""
        self._daemons[name].send_signal(number)
        self._daemons[name].wait(timeout=60)

    def wait_until_saved(self, job_id: int | str) -> None:
        """Wait until the present state of a job is on slurmctld's disk, safe from SIGKILL; it saves every 5 s."""
        mark = f"saved at {time.time_ns()}"
        self.run("scontrol", "update", f"JobId={job_id}", f"Comment={mark}")

        def saved() -> bool:
            with contextlib.suppress(FileNotFoundError):  # for a moment, while it is replaced
                return mark.encode() in (self.root / "state/job_state").read_bytes()
            return False

        self.wait(saved, 30, f"slurmctld to save job {job_id}")

    def start_daemon(self, name: str) -> None:
        """Start a daemon (again) and wait until it listens."""
        if name in self.pids():
            raise RuntimeError(f"{name} runs already")
        munge_socket = self.root / "munge.sock"
        if name == "munged":
            munge_socket.unlink(missing_ok=True)
        with (self.root / "log" / f"{name}.err").open("ab") as errors:
            self._daemons[name] = daemon = subprocess.Popen(
                self._command(name),
                env=self.environment, cwd=self.root, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                start_new_session=True,
            )  # fmt: skip

        def listens() -> bool:
            if daemon.poll() is not None:
                raise RuntimeError(f"{name} exited with {daemon.returncode} instead of starting\n{self.logs()}")
            return munge_socket.exists() if name == "munged" else self._port(name) in listening_ports()

        self.wait(listens, 60, f"{name} to listen")

    def logs(self, lines: int = 12) -> str:
        """The last lines of each daemon's log, or of its error output where it came to no log."""
        tails = []
        for errors in sorted((self.root / "log").glob("*.err")):
            log = errors.with_suffix(".log")
            text = (log if log.exists() else errors).read_text(errors="replace")
            tails.append("\n".join([f"---- {log.stem}", *text.splitlines()[-lines:]]))
        return "\n".join(tails)

    def stop(self) -> None:
        """End the jobs, every process of the cluster, its directory. The end of the `with` block does this."""
        try:
            if "slurmctld" in self.pids():
                # Jobs get a moment to tidy up what they have elsewhere; who does not hear is killed below.
                with contextlib.suppress(TimeoutError, RuntimeError, subprocess.TimeoutExpired):
                    self.cancel_jobs(timeout=2)
        finally:
            if self._guard is None:
                shutil.rmtree(self.root)
            else:
                self._guard.communicate()  # it waits for the end of its input, then ends all that is ours
                for daemon in self._daemons.values():
                    daemon.kill()  # dead already, unless something happened to the guard
                    daemon.wait()
                if self._held is not None:
                    self._held.close()
                if self._guard.returncode:
                    raise RuntimeError(f"could not clean up {self.root}: see the error output")

    def _start(self) -> None:
        for name in ("log", "pid", "state", "spool", "dev"):
            (self.root / name).mkdir()
        self._held = hold_ports()
        self._names = [f"n{i}" for i in range(1, self.nodes + 1)]
        self._addresses = name_nodes(self._names)
        self._configure()
        self.start_daemon("munged")
        if self.accounting:
            self.run(*INSTALL_DB.format_map(self._values()).split())
            self.start_daemon("mariadbd")
            self.start_daemon("slurmdbd")
            self.wait(lambda: not self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode, 60, "slurmdbd")
            self.run("sacctmgr", "-i", "add", "cluster", "turnout")
        self.start_daemon("slurmctld")
        for name in self._names:
            self.start_daemon(f"slurmd-{name}")
        idle = ("sinfo", "-hN", "-p", "main", "-t", "idle", "-o", "%N")
        self.wait(lambda: len(self.run(*idle, check=False).stdout.split()) == self.nodes, 60, "idle nodes")
        if self.accounting:
            shown = ("sacctmgr", "-nP", "show", "cluster", "format=controlport")
            self.wait(lambda: self.run(*shown).stdout.strip() != "0", 60, "slurmctld to register with slurmdbd")

    def _port(self, daemon: str) -> int:
        assert self._held is not None
        first: int = self._held.getsockname()[1]
        _, is_slurmd, number = daemon.partition("slurmd-n")
        return first + (len(PORTS) - 1 + int(number) if is_slurmd else PORTS.index(daemon))

    def _values(self) -> dict[str, object]:
        """What the templates below may refer to."""
        ports = {f"{name}_port": self._port(name) for name in PORTS[1:]}
        host = socket.gethostname().partition(".")[0]
        return {known.name: getattr(self, known.name) for known in fields(self)} | ports | {"host": host}

    def _command(self, name: str) -> list[str]:
        if name in ("munged", "mariadbd"):
            return (MUNGED if name == "munged" else MARIADBD).format_map(self._values()).split()
        program, _, node = name.partition("-")
        return [program, "-D", "-N", node] if node else [program, "-D"]

    def _configure(self) -> None:
        """Write the configuration of every daemon, and what it refers to."""
        root, values, version = self.root, self._values(), slurm_version()
        optional, resources = "", f"CPUs={self.cpus} RealMemory={self.memory}"
        if self.preempt_user_signal and version >= (23, 2):
            optional += "PreemptParameters=send_user_signal\n"
        elif self.preempt_user_signal:
            optional += "SlurmctldParameters=preempt_send_user_signal\n"
        if self.accounting:
            optional += ACCOUNTING_CONF
            write_secret(root / "slurmdbd.conf", SLURMDBD_CONF.format_map(values).encode())
            (root / "init.sql").write_text(INIT_SQL)
        if self.gpus:
            optional += "GresTypes=gpu\n" + "AccountingStorageTRES=gres/gpu\n" * self.accounting
            resources += f" Gres=gpu:{self.gpus}"
            for i in range(self.gpus):  # copies of /dev/null: only character devices set CUDA_VISIBLE_DEVICES
                os.mknod(root / f"dev/gpu{i}", 0o20666, os.makedev(1, 3))
            (root / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={root}/dev/gpu[0-{self.gpus - 1}]\n")
        # Before 23.02 knew "disabled", v1 was the plugin that does nothing until it is asked.
        (root / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if version >= (23, 2) else 'cgroup/v1'}\n")
        write_secret(root / "munge.key", os.urandom(128))
        more = {
            "optional": optional.format_map(values),
            "resources": resources,
            "addresses": ",".join(self._addresses),
            "first_port": self._port(f"slurmd-{self._names[0]}"),
            "last_port": self._port(f"slurmd-{self._names[-1]}"),
        }
        lines = SLURM_CONF.format_map(values | more).splitlines()
        lines = [line for line in lines if line.partition("=")[0] not in self.settings]
        lines += [f"{key}={value}" for key, value in self.settings.items()]
        (root / "slurm.conf").write_text("\n".join(lines) + "\n")


# What a cluster is made of. Names in braces are those of Cluster._values.
SLURM_CONF = """\
ClusterName=turnout
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmctldPidFile={root}/pid/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmctldDebug=verbose
SlurmUser=root
SlurmdUser=root
SlurmdPidFile={root}/pid/slurmd-%n.pid
SlurmdLogFile={root}/log/slurmd-%n.log
SlurmdDebug=verbose
SlurmdSpoolDir={root}/spool/%n
SlurmdTimeout={slurmd_timeout}
StateSaveLocation={root}/state
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire={cred_expire}
# Nodes have what is written here, not what this host has.
SlurmdParameters=config_overrides
# Neither cgroups nor systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Start, restart and requeue without the patience that a large cluster needs.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait={kill_wait}
MinJobAge={min_job_age}
OverTimeLimit={over_time_limit}
MaxArraySize={max_array_size}
{optional}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr={addresses} Port=[{first_port}-{last_port}] {resources} State=UNKNOWN
# Without DefMemPerCPU a job that names no memory takes all of a node.
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_seconds} DefMemPerCPU=500
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefMemPerCPU=500
"""
ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={root}/munge.sock
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={root}/pid/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
INIT_SQL = """\
create database if not exists slurm_acct_db;
create user if not exists slurm@127.0.0.1 identified by 'slurm';
grant all on slurm_acct_db.* to slurm@127.0.0.1;
"""
MUNGED = """munged --foreground --force --socket={root}/munge.sock --key-file={root}/munge.key
--pid-file={root}/pid/munged.pid --log-file={root}/log/munged.log --seed-file={root}/munge.seed"""
# Nothing here has to survive the host: not waiting for the disk saves seconds on a slow one.
INSTALL_DB = """mariadb-install-db --no-defaults --user=root --datadir={root}/db --skip-test-db
--auth-root-authentication-method=normal --innodb-log-file-size=8M --loose-debug-no-sync --loose-skip-sync-frm"""
MARIADBD = """mariadbd --no-defaults --user=root --datadir={root}/db --tmpdir={root} --socket={root}/mysql.sock
--pid-file={root}/pid/mariadbd.pid --log-error={root}/log/mariadbd.log --bind-address=127.0.0.1 --port={mariadbd_port}
--skip-name-resolve --init-file={root}/init.sql --innodb-log-file-size=8M --loose-debug-no-sync --loose-skip-sync-frm
--innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900"""


def slurm_version() -> tuple[int, int]:
    """Of the installed slurmctld, (22, 5) for 22.05.8."""
    said = subprocess.run(["slurmctld", "-V"], env=os.environ | {"PATH": PATH}, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None:
        raise RuntimeError(f"`slurmctld -V` names no version: {said!r}")
    return int(found[1]), int(found[2])


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can ever read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def listening_ports() -> set[int]:
    """TCP ports (IPv4) on which this host listens; looking does not disturb the listener, connecting would."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A"}


def hold_ports() -> socket.socket:
    """A socket on the first of BLOCK free ports; as long as it is open, the block belongs to its holder.

    Blocks do not overlap, so no two clusters can share a port; they lie below those that Linux hands out by itself.
    """
    for first in random.SystemRandom().sample(range(10240, 32768, BLOCK), k=100):
        with contextlib.ExitStack() as others, contextlib.suppress(OSError):
            sockets = [others.enter_context(socket.socket()) for _ in range(BLOCK)]
            for offset, held in enumerate(sockets):
                held.bind(("", first + offset))
            return sockets[0].dup()
    raise RuntimeError(f"found no {BLOCK} free ports in a row")


def name_nodes(names: list[str]) -> list[str]:
    """Make node names resolve, as those of a real cluster do: add what /etc/hosts lacks. Returns loopback addresses."""
    addresses = [f"127.0.0.{number}" for number in range(11, 11 + len(names))]
    with open("/etc/hosts", "r+", encoding="utf-8") as hosts:
        fcntl.flock(hosts, fcntl.LOCK_EX)
        text = hosts.read()
        known = {word for line in text.splitlines() for word in line.partition("#")[0].split()[1:]}
        new = [f"{address} {name}  # Turnout tests\n" for address, name in zip(addresses, names, strict=True)
               if name not in known]  # fmt: skip
        hosts.write("".join(["\n" * (new != [] and not text.endswith("\n")), *new]))
    return addresses


def members(root: Path) -> dict[int, str]:
    """The living processes of the cluster in `root`, as pid -> name: daemons, clients, job steps and their children."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        environment: list[bytes] = []
        try:
            before, _, after = (process / "stat").read_text(errors="replace").rpartition(")")
            pid, state, parent = int(process.name), *after.split()[:2]
            if state in "ZX":
                continue
            parents[pid], names[pid] = int(parent), before.partition("(")[2]
            environment = (process / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass  # it ended meanwhile, or is none of ours unless by its parent
        # Somebody's shell or editor may know the cluster too: only its programs and what runs in a job are its own.
        in_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in environment)
        if f"SLURM_CONF={root}/slurm.conf".encode() in environment and (in_job or names[pid] in PROGRAMS):
            found.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    return {pid: names[pid] for pid in sorted(found)}


def end(root: Path) -> None:
    """Wait for the end of standard input, then kill the cluster in `root` and remove its directory."""
    sys.stdin.buffer.read()
    give_up = time.monotonic() + 30
    while found := members(root):
        if time.monotonic() > give_up:
            sys.exit(f"{root}: cannot end {found}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(root)


def main() -> None:
    """Bring a cluster up for use by hand."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for each in fields(Cluster):
        if "help" in each.metadata:
            kind = {"action": argparse.BooleanOptionalAction} if each.type is bool else {"type": each.type}
            option = f"--{each.name.replace('_', '-')}"
            parser.add_argument(option, default=each.default, help=each.metadata["help"], **kind)
    options = vars(parser.parse_args())
    packages = missing(options["accounting"])
    if packages:
        sys.exit(not_installed(packages))
    if os.geteuid() != 0:
        sys.exit("Slurm's daemons need root")
    for number in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored in what a script starts with &
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Cluster(**options) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        print("Slurm runs until Ctrl-C or SIGTERM.", file=sys.stderr)
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--end"]:
        end(Path(sys.argv[2]))
    else:
        main()
