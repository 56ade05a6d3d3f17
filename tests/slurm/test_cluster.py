"""The private Slurm cluster of the tests works, and leaves nothing behind."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster, listening_ports, missing
from tests.slurm.conftest import require_slurm
from tests.slurm.submitted import is_alive

PROGRAM = Path(__file__).with_name("cluster.py")
RECORDER = """\
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
def record(number, frame):
    with log.open("a") as file:
        file.write(signal.Signals(number).name + "\\n")
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, record)
log.write_text("ready\\n")
while "SIGUSR2" not in log.read_text():
    time.sleep(0.05)
"""


def submit(cluster: Cluster, directory: Path, *options: str, script: str) -> str:
    """Queue a shell script and return the job id."""
    output = f"--output={directory}/%A_%a.out"
    done = cluster.run("sbatch", "--parsable", output, *options, stdin=f"#!/bin/sh\n{script}\n", cwd=directory)
    return done.stdout.strip()


def wait_for_state(cluster: Cluster, job: str, *states: str, timeout: float = 30) -> None:
    cluster.wait(lambda: cluster.job_states(job).get(job) in states, timeout, f"job {job} to be {' or '.join(states)}")


def processes_that_name(root: Path) -> dict[int, str]:
    """Return pid → command line of the processes that name the cluster, in SLURM_CONF or otherwise, or work in it."""
    processes = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command, conf = " ".join(process.cmdline()), process.environ().get("SLURM_CONF")
            if str(root) in command or conf == f"{root}/slurm.conf" or process.cwd().startswith(str(root)):
                processes[process.pid] = command
    return processes


def start_job_that_ignores_sigterm(cluster: Cluster, directory: Path) -> list[int]:
    """Start a job that ignores SIGTERM and has a child with an empty environment; return the pids of both."""
    script = "trap '' TERM\nenv -i sleep 600 &\necho $$ $! > new\nmv new pids\nwait\nsleep 600"
    submit(cluster, directory, script=script)
    cluster.wait((directory / "pids").exists, 20, "the job to start")
    return [int(pid) for pid in (directory / "pids").read_text().split()]


@pytest.fixture(autouse=True)
def cancel_jobs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancel all jobs of the shared cluster, also after a test that failed."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_jobs()


def test_a_job_step_runs_on_both_nodes(cluster: Cluster) -> None:
    output = cluster.run("srun", "--nodes=2", "sh", "-c", "echo $SLURMD_NODENAME $SLURM_NODEID").stdout
    assert sorted(output.splitlines()) == ["n1 0", "n2 1"]


def test_node_names_resolve_to_loopback(cluster: Cluster) -> None:
    output = cluster.run("getent", "ahostsv4", "n1", "n2").stdout
    assert re.search(r"^127\.\S+ +STREAM n1", output, re.MULTILINE)


def test_gpus_are_allocated(cluster: Cluster) -> None:
    show = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert cluster.run("srun", "--gpus-per-node=2", *show).stdout == "0,1\n"
    each = cluster.run("srun", "--nodes=1", "--ntasks=2", "--gpus-per-task=1", *show).stdout
    assert sorted(each.split()) == ["0", "1"]
    assert cluster.run("srun", "--gpus-per-node=3", "true", check=False).returncode != 0


def test_each_element_of_an_array_starts_the_one_that_depends_on_it(cluster: Cluster, tmp_path: Path) -> None:
    train = submit(
        cluster, tmp_path, "--array=0-2",
        script='[ "$SLURM_ARRAY_TASK_ID" != 1 ] && touch trained.$SLURM_ARRAY_TASK_ID',
    )  # fmt: skip
    evaluate = submit(
        cluster, tmp_path, "--array=0-2", f"--dependency=aftercorr:{train}", "--kill-on-invalid-dep=yes",
        script="[ -e trained.$SLURM_ARRAY_TASK_ID ]",
    )  # fmt: skip
    expected = {f"{evaluate}_0": "COMPLETED", f"{evaluate}_1": "CANCELLED", f"{evaluate}_2": "COMPLETED"}
    cluster.wait(lambda: cluster.job_states(evaluate) == expected, 30, f"{expected}")
    assert cluster.job_states(train)[f"{train}_1"] == "FAILED"


def test_accounting_knows_that_a_job_completed(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "--nodes=2", script="true")
    sacct = ("sacct", "-XnP", "-j", job, "-o", "State,NNodes")
    cluster.wait(lambda: cluster.run(*sacct).stdout == "COMPLETED|2\n", 30, f"job {job} in accounting")


def test_preemption_sends_the_signal_that_the_job_requested(cluster: Cluster, tmp_path: Path) -> None:
    log, recorder = tmp_path / "signals", tmp_path / "recorder.py"
    recorder.write_text(RECORDER)
    low = submit(
        cluster, tmp_path, "--exclusive", "--nodes=2", "--signal=USR2@60", "--time=10",
        script=f"exec srun --ntasks=1 --nodes=1 {sys.executable} {recorder} {log}",
    )  # fmt: skip
    cluster.wait(log.exists, 20, "the low job to set its handlers")
    high = submit(cluster, tmp_path, "--partition=high", "--exclusive", "--nodes=2", script="true")
    cluster.wait(lambda: "SIGUSR2" in log.read_text(), 20, "SIGUSR2")
    assert "SIGTERM" not in log.read_text()
    # The low job exits by itself within its grace time. Slurm 22.05 counts it as completed, 24.11 requeues it.
    wait_for_state(cluster, high, "COMPLETED", timeout=10)
    wait_for_state(cluster, low, "COMPLETED", "PENDING", "RUNNING")


@pytest.mark.parametrize("daemon", ["slurmctld", "slurmd-n1"])
def test_a_running_job_survives_the_crash_of(daemon: str, cluster: Cluster, tmp_path: Path) -> None:
    job = submit(
        cluster,
        tmp_path,
        "--nodelist=n1",
        script="echo $$ > pid; while [ ! -e go ]; do sleep 0.1; done; touch ended",
    )
    cluster.wait((tmp_path / "pid").exists, 20, "the job to start")
    if daemon == "slurmctld":
        cluster.wait_until_saved(job)
    cluster.kill_daemon(daemon)
    assert daemon not in cluster.pids()
    cluster.start_daemon(daemon)
    wait_for_state(cluster, job, "RUNNING")
    assert is_alive(int((tmp_path / "pid").read_text()))
    (tmp_path / "go").touch()
    wait_for_state(cluster, job, "COMPLETED")
    assert (tmp_path / "ended").exists()


def test_accounting_catches_up_after_a_crash(cluster: Cluster, tmp_path: Path) -> None:
    cluster.kill_daemon("slurmdbd")
    try:
        job = submit(cluster, tmp_path, script="true")
        wait_for_state(cluster, job, "COMPLETED")
        assert "Connection refused" in cluster.run("sacct", "-j", job, check=False).stderr
    finally:
        cluster.start_daemon("slurmdbd")
    sacct = ("sacct", "-XnP", "-j", job, "-o", "State")
    cluster.wait(lambda: cluster.run(*sacct, check=False).stdout == "COMPLETED\n", 30, f"job {job} in accounting")


def test_a_daemon_is_not_started_twice(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="slurmd-n1 is already running"):
        cluster.start_daemon("slurmd-n1")


def test_two_clusters_run_beside_each_other(cluster: Cluster, tmp_path: Path) -> None:
    with Cluster(nodes=1, accounting=False, gpus=0, max_array_size=10, settings={"MaxJobCount": 50}) as other:
        assert other.run("srun", "sh", "-c", "echo $SLURM_CONF").stdout.strip() == other.environment["SLURM_CONF"]
        assert cluster.run("sinfo", "-hN", "-p", "main", "-o", "%N").stdout.split() == ["n1", "n2"]
        assert other.run("sinfo", "-hN", "-p", "main", "-o", "%N").stdout.split() == ["n1"]
        config = other.run("scontrol", "show", "config").stdout
        assert re.search(r"^MaxArraySize += 10$", config, re.MULTILINE)
        assert re.search(r"^MaxJobCount += 50$", config, re.MULTILINE)
        pids = start_job_that_ignores_sigterm(cluster, tmp_path)
    # The end of one cluster does not affect the other.
    assert all(map(is_alive, pids))
    assert len(cluster.pids()) == 6


def test_cancelled_jobs_leave_no_processes(cluster: Cluster, tmp_path: Path) -> None:
    pids = start_job_that_ignores_sigterm(cluster, tmp_path)
    cluster.cancel_jobs()
    assert not any(map(is_alive, pids))
    assert cluster.run("squeue", "-h").stdout == ""


class Interruption(KeyboardInterrupt):
    """A KeyboardInterrupt that differs from a real Ctrl-C."""


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("end", [None, Interruption])
def test_a_cluster_leaves_nothing_behind(end: type[BaseException] | None, tmp_path: Path) -> None:
    with contextlib.suppress(Interruption), Cluster(accounting=end is None) as mine:
        ports = {mine._port(name) for name in mine.pids() if name != "munged"}
        pids = start_job_that_ignores_sigterm(mine, tmp_path)
        assert ports <= listening_ports()
        mine.kill_daemon("slurmd-n1")  # its job steps must be ended all the same
        if end is not None:
            raise end
    assert not mine.root.exists()
    assert processes_that_name(mine.root) == {}
    assert not any(map(is_alive, pids))
    assert not ports & listening_ports()
    assert mine.pids() == {}


@pytest.mark.usefixtures("slurm")
def test_a_cluster_that_cannot_start_reports_why_and_leaves_nothing_behind() -> None:
    broken = Cluster(accounting=False, settings={"SelectType": "select/nonsense"})
    with pytest.raises(RuntimeError, match=r"(?s)slurmctld exited with 1.*select/nonsense"):
        broken.__enter__()
    assert not broken.root.exists()
    assert processes_that_name(broken.root) == {}


@pytest.fixture
def by_hand(slurm: None) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a running `python tests/slurm/cluster.py` and its directory."""
    command = [sys.executable, str(PROGRAM), "--no-accounting", "--nodes=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            name, _, conf = process.stdout.readline().strip().partition("=")
            assert name == "export SLURM_CONF"
            yield process, Path(conf).parent
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_started_by_hand_runs_until_a_signal(
    by_hand: tuple[subprocess.Popen[str], Path], number: signal.Signals
) -> None:
    process, root = by_hand
    assert processes_that_name(root) != {}
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert not root.exists()
    assert processes_that_name(root) == {}


def test_a_cluster_whose_process_is_killed_leaves_nothing_behind(
    by_hand: tuple[subprocess.Popen[str], Path], cluster: Cluster, tmp_path: Path
) -> None:
    process, root = by_hand
    command = ["sbatch", "--output=/dev/null", f"--wrap=touch {tmp_path}/started; sleep 600"]
    subprocess.run(command, env=cluster.environment | {"SLURM_CONF": f"{root}/slurm.conf"}, check=True, stdout=-3)
    cluster.wait((tmp_path / "started").exists, 20, "the job to start")
    process.kill()
    process.wait()
    cluster.wait(lambda: not root.exists() and processes_that_name(root) == {}, 30, f"{root} to be cleaned up")


def test_wait_times_out_with_the_last_value_and_the_logs(cluster: Cluster) -> None:
    with pytest.raises(TimeoutError, match=r"(?s)0\.1 s for an event; the last value was 0\n.*---- slurmctld\n"):
        cluster.wait(lambda: 0, 0.1, "an event")


def test_a_failed_command_shows_its_error_output(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"exited with 1\n.*Invalid job id"):
        cluster.run("scontrol", "show", "job", "999999")
    assert cluster.job_states(999999) == {}


@pytest.mark.parametrize("knobs", [{"nodes": 0}, {"nodes": 29}, {"cred_expire": 4}])
def test_values_that_slurm_would_misinterpret_are_rejected(knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        Cluster(**knobs)  # type: ignore[arg-type]


def test_the_environment_does_not_include_variables_of_a_surrounding_job(
    slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    with Cluster(nodes=1, accounting=False) as mine:
        assert {name for name in mine.environment if name.startswith(("SLURM", "SQUEUE"))} == {"SLURM_CONF"}


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_programs_skip_here_and_fail_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name.startswith("slurm") else name)
    monkeypatch.setenv("CI", ci)
    assert missing() == ["slurmctld", "slurmd", "slurmdbd"]
    assert missing(accounting=False) == ["slurmctld", "slurmd"]
    with pytest.raises(outcome, match=r"Slurm is not installed: apt-get install -y .*slurmctld slurmd slurmdbd"):
        require_slurm()


def test_slurm_tests_are_skipped_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="root"):
        require_slurm()
