"""Start a private real Slurm on this host: munged, mariadbd, slurmdbd, slurmctld and one slurmd per node.

All its files are in one temporary directory. In a test: `with Cluster() as cluster: cluster.run("sbatch", …)`.
By hand: `python tests/slurm/cluster.py --help`.
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

import psutil

T = TypeVar("T")

PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # Debian keeps the daemons in sbin
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client", "munged": "munge"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
PROGRAMS = {"slurmctld", "slurmd", "slurmstepd", "slurmdbd", "munged", "mariadbd", "srun", "salloc", "sbatch"}
INHERITED = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SCANCEL_", "SQUEUE_", "SACCT_", "SINFO_")
PORTS = ("reserved", "slurmctld", "slurmdbd", "mariadbd")  # first ports of a cluster's block; one per slurmd follows
BLOCK = 32  # ports per cluster
START_TIMEOUT = 300.0  # seconds for a daemon or the database to start; 3 suffice on an idle machine


def missing(accounting: bool = True) -> list[str]:
    """Return the Debian packages that must be installed before a Cluster can start, sorted; [] if none is missing."""
    packages = PACKAGES | ACCOUNTING_PACKAGES if accounting else PACKAGES
    return sorted({package for program, package in packages.items() if shutil.which(program, path=PATH) is None})


def not_installed(packages: list[str]) -> str:
    """Return the message for a machine that lacks `packages`."""
    return f"Slurm is not installed: apt-get install -y --no-install-recommends {' '.join(packages)}"


def knob(default: T, meaning: str) -> T:
    """Return a field of Cluster that is also a command-line option."""
    value: T = field(default=default, metadata={"help": meaning})
    return value


@dataclass(eq=False)
class Cluster:
    """A context manager that runs Slurm with idle nodes, and leaves neither processes nor files behind.

    It has two partitions over all nodes: `main` (default, preemptible, jobs are requeued) and `high` (preempts main).
    RuntimeError with the end of the logs if a daemon does not start. A small guard process cleans up if this process
    is killed.
    """

    nodes: int = knob(2, "number of nodes n1, n2, …; all of them are this host")
    cpus: int = knob(8, "CPUs per node; they need not exist")
    gpus: int = knob(2, "fake GPUs per node: Slurm allocates them, but there is no hardware")
    memory: int = knob(8000, "MB per node; it need not exist")
    accounting: bool = knob(True, "run slurmdbd on a MariaDB, so that sacct answers")
    grace_seconds: int = knob(20, "seconds from the first signal of a preemption to the end of the job")
    cred_expire: int = knob(5, "seconds until a requeued job may start again, at least 5")
    kill_wait: int = knob(5, "seconds from SIGTERM to SIGKILL")
    slurmd_timeout: int = knob(10, "seconds without an answer after which a node is down")
    preempt_user_signal: bool = knob(True, "begin a preemption with the job's own --signal instead of SIGTERM")
    max_array_size: int = knob(1001, "upper bound of job array indices, exclusive")
    over_time_limit: int = knob(0, "minutes that a job may run beyond its time limit")
    min_job_age: int = knob(300, "seconds for which squeue remembers an ended job")
    settings: Mapping[str, object] = field(default_factory=dict)  # lines of slurm.conf that override the fields above
    root: Path = field(init=False, repr=False)
    environment: dict[str, str] = field(init=False, repr=False)  # for every process that uses this cluster

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= BLOCK - len(PORTS):
            raise ValueError(f"nodes must be in 1 … {BLOCK - len(PORTS)}, not {self.nodes}")
        if self.cred_expire < 5:
            raise ValueError(f"cred_expire must be at least 5, not {self.cred_expire}: Slurm would use 120 instead")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._reservation: socket.socket | None = None

    def __enter__(self) -> "Cluster":
        if len(tempfile.gettempdir()) > 48:
            raise ValueError(f"{tempfile.gettempdir()} is too long a path for Unix sockets inside it: set TMPDIR")
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
        """Run a command in `environment` and capture its output as text.

        RuntimeError with that output if it fails and `check` is set, subprocess.TimeoutExpired after `timeout` s.
        """
        command = [str(word) for word in argv]
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, input=stdin, timeout=timeout, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait(self, predicate: Callable[[], T], timeout: float, event: str) -> T:
        """Poll until `predicate()` is true and return its value; TimeoutError with the logs after `timeout` s.

        A predicate that takes long, such as a question to Slurm, is called less often: waiting must not cost much CPU.
        """
        asked = time.monotonic()
        deadline = asked + timeout
        while not (value := predicate()):
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"waited {timeout:g} s for {event}; the last value was {value!r}\n{self.logs()}")
            time.sleep(min(max(0.05, 10 * (now - asked)), 1))
            asked = time.monotonic()
        return value

    def job_states(self, job_id: int | str) -> dict[str, str]:
        """Return job → state: `{"7": "RUNNING"}`, for an array `{"7_0": "COMPLETED", …}`, {} for an unknown id."""
        rows = ""
        # Without a controller squeue would retry for 20 s, so it is not asked.
        if "slurmctld" in self.pids():
            rows = self.run("squeue", "-hr", "-t", "all", "-j", str(job_id), "-o", "%i|%T", check=False).stdout
        if self.accounting and not rows:  # squeue forgets ended jobs, and sacct lags behind
            rows = self.run("sacct", "-XnP", "-j", str(job_id), "-o", "JobID,State", check=False).stdout
        states = dict(row.split("|") for row in rows.splitlines())
        return {job: state.split()[0] for job, state in states.items() if "[" not in job}  # "CANCELLED by 0", "7_[1-3]"

    def cancel_jobs(self, timeout: float = 60) -> None:
        """Cancel every job and wait until all have ended."""
        self.run("scancel", "--user", str(os.getuid()), check=False, timeout=timeout)
        self.wait(lambda: not self.run("squeue", "-h", timeout=timeout).stdout, timeout, "cancelled jobs to end")

    def pids(self) -> dict[str, int]:
        """Return name → pid of the running daemons: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, …"""
        return {name: daemon.pid for name, daemon in self._daemons.items() if daemon.poll() is None}

    def kill_daemon(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon and wait for its end; job steps keep running, as after a crash of the daemon."""
        self._daemons[name].send_signal(number)
        self._daemons[name].wait(timeout=60)

    def wait_until_saved(self, job_id: int | str) -> None:
        """Wait until slurmctld has written the current state of a job to disk, which it does every 5 s."""
        mark = f"saved at {time.time_ns()}"
        self.run("scontrol", "update", f"JobId={job_id}", f"Comment={mark}")

        def saved() -> bool:
            with contextlib.suppress(FileNotFoundError):  # missing for a moment while it is replaced
                return mark.encode() in (self.root / "state/job_state").read_bytes()
            return False

        self.wait(saved, 30, f"slurmctld to save job {job_id}")

    def start_daemon(self, name: str) -> None:
        """Start or restart a daemon and wait until it listens."""
        if name in self.pids():
            raise RuntimeError(f"{name} is already running")
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

        self.wait(listens, START_TIMEOUT, f"{name} to listen")

    def logs(self, lines: int = 12) -> str:
        """Return the last lines of each daemon's log, or of its stderr if it has no log."""
        tails = []
        for errors in sorted((self.root / "log").glob("*.err")):
            log = errors.with_suffix(".log")
            text = (log if log.exists() else errors).read_text(errors="replace")
            tails.append("\n".join([f"---- {log.stem}", *text.splitlines()[-lines:]]))
        return "\n".join(tails)

    def stop(self) -> None:
        """End all jobs and processes and remove the directory, as the end of the `with` block does."""
        try:
            if "slurmctld" in self.pids():
                # Jobs get a moment to clean up outside the directory; those that ignore it are killed below.
                with contextlib.suppress(TimeoutError, RuntimeError, subprocess.TimeoutExpired):
                    self.cancel_jobs(timeout=2)
        finally:
            if self._guard is None:
                shutil.rmtree(self.root)
            else:
                self._guard.communicate()  # at the end of its input the guard ends all processes of the cluster
                for daemon in self._daemons.values():
                    daemon.kill()  # already dead, unless the guard failed
                    daemon.wait()
                if self._reservation is not None:
                    self._reservation.close()
                if self._guard.returncode:
                    raise RuntimeError(f"could not clean up {self.root}: see stderr")

    def _start(self) -> None:
        for name in ("log", "pid", "state", "spool", "dev"):
            (self.root / name).mkdir()

        self._reservation = reserve_ports()
        self._names = [f"n{i}" for i in range(1, self.nodes + 1)]
        self._addresses = name_nodes(self._names)
        self._configure()
        self.start_daemon("munged")
        if self.accounting:
            self.run(*INSTALL_DB.format_map(self._values()).split(), timeout=START_TIMEOUT)
            self.start_daemon("mariadbd")
            self.start_daemon("slurmdbd")
            self.wait(
                lambda: not self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode,
                START_TIMEOUT,
                "slurmdbd",
            )
            self.run("sacctmgr", "-i", "add", "cluster", "turnout")
        self.start_daemon("slurmctld")
        for name in self._names:
            self.start_daemon(f"slurmd-{name}")
        idle = ("sinfo", "-hN", "-p", "main", "-t", "idle", "-o", "%N")
        self.wait(lambda: len(self.run(*idle, check=False).stdout.split()) == self.nodes, START_TIMEOUT, "idle nodes")
        if self.accounting:
            shown = ("sacctmgr", "-nP", "show", "cluster", "format=controlport")
            self.wait(
                lambda: self.run(*shown).stdout.strip() != "0", START_TIMEOUT, "slurmctld to register with slurmdbd"
            )

    def _port(self, daemon: str) -> int:
        assert self._reservation is not None
        first: int = self._reservation.getsockname()[1]
        _, is_slurmd, number = daemon.partition("slurmd-n")
        return first + (len(PORTS) - 1 + int(number) if is_slurmd else PORTS.index(daemon))

    def _values(self) -> dict[str, object]:
        """Return the values of the names in the templates below."""
        ports = {f"{name}_port": self._port(name) for name in PORTS[1:]}
        host = socket.gethostname().partition(".")[0]
        return {option.name: getattr(self, option.name) for option in fields(self)} | ports | {"host": host}

    def _command(self, name: str) -> list[str]:
        if name in ("munged", "mariadbd"):
            return (MUNGED if name == "munged" else MARIADBD).format_map(self._values()).split()
        program, _, node = name.partition("-")
        return [program, "-D", "-N", node] if node else [program, "-D"]

    def _configure(self) -> None:
        """Write the configuration of every daemon and the files that it names."""
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
            for i in range(self.gpus):  # copies of /dev/null: Slurm sets CUDA_VISIBLE_DEVICES only for devices
                os.mknod(root / f"dev/gpu{i}", 0o20666, os.makedev(1, 3))
            (root / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={root}/dev/gpu[0-{self.gpus - 1}]\n")
        # Slurm before 23.02 does not know "disabled"; there cgroup/v1 does nothing unless another plugin uses it.
        (root / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if version >= (23, 2) else 'cgroup/v1'}\n")
        write_secret(root / "munge.key", os.urandom(128))
        values |= {
            "optional": optional.format_map(values),
            "resources": resources,
            "addresses": ",".join(self._addresses),
            "first_port": self._port(f"slurmd-{self._names[0]}"),
            "last_port": self._port(f"slurmd-{self._names[-1]}"),
        }
        lines = SLURM_CONF.format_map(values).splitlines()
        lines = [line for line in lines if line.partition("=")[0] not in self.settings]
        lines += [f"{key}={value}" for key, value in self.settings.items()]
        (root / "slurm.conf").write_text("\n".join(lines) + "\n")


# Templates of configuration files and commands. Names in braces are those of Cluster._values.
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
# Nodes have the resources configured here, not those of this host.
SlurmdParameters=config_overrides
# Neither cgroups nor systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Start, restart and requeue at once, without the delays that a large cluster needs.
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
# The database need not survive a crash of the host, and skipping fsync saves seconds on a slow disk.
INSTALL_DB = """mariadb-install-db --no-defaults --user=root --datadir={root}/db --skip-test-db
--auth-root-authentication-method=normal --innodb-log-file-size=8M --loose-debug-no-sync --loose-skip-sync-frm"""
MARIADBD = """mariadbd --no-defaults --user=root --datadir={root}/db --tmpdir={root} --socket={root}/mysql.sock
--pid-file={root}/pid/mariadbd.pid --log-error={root}/log/mariadbd.log --bind-address=127.0.0.1 --port={mariadbd_port}
--skip-name-resolve --init-file={root}/init.sql --innodb-log-file-size=8M --loose-debug-no-sync --loose-skip-sync-frm
--innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900"""


def slurm_version() -> tuple[int, int]:
    """Return the version of the installed slurmctld, such as (22, 5) for 22.05.8."""
    output = subprocess.run(["slurmctld", "-V"], env=os.environ | {"PATH": PATH}, capture_output=True, text=True).stdout
    match = re.search(r"(\d+)\.(\d+)", output)
    if match is None:
        raise RuntimeError(f"`slurmctld -V` prints no version: {output!r}")
    return int(match[1]), int(match[2])


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from the moment it exists."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def listening_ports() -> set[int]:
    """Return the TCP ports (IPv4) on which this host listens, without connecting, which would disturb the listener."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A"}


def reserve_ports() -> socket.socket:
    """Return a socket on the first of BLOCK free ports, which reserves the block as long as it is open.

    Blocks do not overlap, so no two clusters share a port; they are below the ports that Linux assigns by itself.
    """
    for first in random.SystemRandom().sample(range(10240, 32768, BLOCK), k=100):
        with contextlib.ExitStack() as others, contextlib.suppress(OSError):
            sockets = [others.enter_context(socket.socket()) for _ in range(BLOCK)]
            for offset, port in enumerate(sockets):
                port.bind(("", first + offset))
            return sockets[0].dup()
    raise RuntimeError(f"there are no {BLOCK} free ports in a row")


def name_nodes(names: list[str]) -> list[str]:
    """Add missing node names to /etc/hosts, so that they resolve as on a real cluster; return loopback addresses."""
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
    """Return pid → name of the cluster's processes: daemons, clients, job steps and all their descendants."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    pids: set[int] = set()
    for process in psutil.process_iter():
        try:
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                continue
            parents[process.pid], names[process.pid] = process.ppid(), process.name()
            environment = process.environ()
            # slurmstepd overwrites its environment and is nobody's child, but works where its slurmd does.
            is_step = names[process.pid] == "slurmstepd" and process.cwd() == str(root)
        except psutil.Error:
            continue  # it has ended, or belongs to another user and thus not to the cluster
        # A user's shell or editor may have SLURM_CONF, too, so only Slurm's programs and processes of jobs count.
        is_slurm = "SLURM_JOB_ID" in environment or names[process.pid] in PROGRAMS
        if is_step or (is_slurm and environment.get("SLURM_CONF") == f"{root}/slurm.conf"):
            pids.add(process.pid)
    while children := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= children
    return {pid: names[pid] for pid in sorted(pids)}


def end(root: Path) -> None:
    """Wait for the end of stdin, then kill the cluster in `root` and remove its directory."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + 30
    while processes := members(root):
        if time.monotonic() > deadline:
            sys.exit(f"{root}: cannot end {processes}")
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(root)


def main() -> None:
    """Start a private Slurm cluster for use by hand; Ctrl-C or SIGTERM ends it."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for option in fields(Cluster):
        if "help" in option.metadata:
            kind = {"action": argparse.BooleanOptionalAction} if option.type is bool else {"type": option.type}
            name = f"--{option.name.replace('_', '-')}"
            parser.add_argument(name, default=option.default, help=option.metadata["help"], **kind)
    options = vars(parser.parse_args())
    packages = missing(options["accounting"])
    if packages:
        sys.exit(not_installed(packages))
    if os.geteuid() != 0:
        sys.exit("Slurm's daemons need root")
    for number in (signal.SIGTERM, signal.SIGINT):  # a script that starts this with & makes it ignore SIGINT
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
