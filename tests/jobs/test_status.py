"""The state of a trial from its run directory and from Slurm, the table that shows it, and its log files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.slurm import accounting
from jobs.backends.slurm.accounting import SlurmJob, parse_sacct, parse_squeue
from jobs.logs import select_trials
from jobs.tracking import table
from jobs.tracking.log_files import newest_log_files
from jobs.tracking.state import (
    DiskState,
    TrialStatus,
    combine_states,
    count_causes,
    determine_status,
    determine_statuses,
    is_failed,
    query_statuses,
)
from trainer.errors import ConfigError
from trainer.runs import index
from trainer.runs.directory import RunDirectory, find_runs
from trainer.runs.job_states import read_job_states

ROOT = Path(__file__).parents[2]
MY_NAME = accounting.user_name(str(os.getuid()))

# What Slurm 22.05 printed.
SACCT = f"""\
5_0|PREEMPTED|0:0|n1
5_0.batch|CANCELLED|0:15|n1
5_1|REQUEUED|0:0|n[1-2]
5_1.batch|CANCELLED|0:15|n1
5_1.0|COMPLETED|0:0|n[1-2]
5_0|CANCELLED by {os.getuid()}|0:0|None assigned
5_1|RUNNING|0:0|n1
5_1.batch|RUNNING|0:0|n1
5_[2-5%2]|PENDING|0:0|None assigned
24|FAILED|9:0|n[1-2]
24.batch|FAILED|9:0|n1
24.0|CANCELLED by 0|0:9|n[1-2]
"""
SQUEUE = """\
5_2|PENDING|JobArrayTaskLimit||0|0|
5_1|RUNNING|None|n1|1|0|
1|FAILED|NonZeroExitCode|n1|0|35072|
2|FAILED|NonZeroExitCode|n1|0|768|
3|FAILED|JobLaunchFailure|n1|0|9|
4|COMPLETING|None|n1|0|0|
"""


def test_sacct_lists_every_attempt_of_a_job() -> None:
    attempts = parse_sacct(SACCT)
    assert {job: [attempt.state for attempt in of_job] for job, of_job in attempts.items()} == {
        "5_0": ["PREEMPTED", "CANCELLED"],
        "5_1": ["REQUEUED", "RUNNING"],
        "5_[]": ["PENDING"],
        "24": ["FAILED"],
    }
    assert [attempt.nodes for attempt in attempts["5_0"]] == ["n1", ""]
    assert attempts["5_0"][-1].describe_end() == f"cancelled by {MY_NAME}"
    assert attempts["24"][0].describe_end() == "a task was killed by SIGKILL"


def test_a_job_is_out_of_memory_if_one_of_its_steps_was() -> None:
    """Lines in the form of Slurm's manual, since the Slurm of the tests cannot use cgroups."""
    rows = ["7|FAILED|1:0|n1", "7.batch|FAILED|1:0|n1", "7.0|OUT_OF_MEMORY|0:125|n1", "8|OUT_OF_MEMORY|0:125|n1"]
    assert {job: attempt.describe_end() for job, (attempt,) in parse_sacct("\n".join(rows)).items()} == {
        "7": "out of memory",
        "8": "out of memory",
    }


def test_squeue_lists_the_current_state_of_jobs() -> None:
    live = parse_squeue(SQUEUE)
    assert {job: (now.state, now.waits, restarts) for job, (now, restarts) in list(live.items())[:2]} == {
        "5_2": ("PENDING", "JobArrayTaskLimit", 0),
        "5_1": ("RUNNING", "", 1),
    }
    assert [live[job][0].describe_end() for job in "1234"] == [
        "a task was killed by SIGKILL",
        "exit code 3",
        "the batch script was killed by SIGKILL",
        "",
    ]


def test_a_held_job_waits_for_its_release() -> None:
    job = SlurmJob("7_0", "train", "PENDING", waits="launch failed requeued held")
    assert job.pending_reason == "launch failed requeued held: `scontrol release 7_0`"
    assert SlurmJob("7_0", "train", "PENDING", waits="Priority").pending_reason == "Priority"


@pytest.mark.parametrize(
    ("attempts", "squeue", "state", "former"),
    [
        ("5_0", "", "CANCELLED", ("PREEMPTED",)),  # it has left the queue
        ("5_1", SQUEUE, "RUNNING", ("REQUEUED",)),
        ("5_1", "", "", ("REQUEUED",)),  # squeue no longer lists it, so it has ended, though sacct does not know yet
        ("5_1", None, "RUNNING", ("REQUEUED",)),  # only sacct answered
        ("5_[]", SQUEUE.replace("5_2", "5_9"), "", ()),
        ("", "5_1|PENDING|BeginTime||2|0|", "PENDING", ("REQUEUED", "REQUEUED")),  # only squeue knows it
        ("24", "24|COMPLETING|None|n1|0|0|", "FAILED", ()),
        ("", "", "", ()),
        ("", None, "", ()),
    ],
)
def test_squeue_wins_over_sacct(attempts: str, squeue: str | None, state: str, former: tuple[str, ...]) -> None:
    job = SlurmJob("5_1" if attempts in ("", "5_1") else "5_2" if "[" in attempts else attempts, "train")
    live = None if squeue is None else parse_squeue(squeue)
    joined = accounting.combine(job, parse_sacct(SACCT).get(attempts, []), live)
    assert (joined.id, joined.stage, joined.state, joined.former) == (job.id, "train", state, former)


NOW: dict[str, Any] = {"attempt": "5_0.1", "age": 1.0}
JOB = {"id": "5_0", "stage": "train", "former": ("PREEMPTED",)}


@pytest.mark.parametrize(
    ("disk", "slurm", "expected"),
    [
        (DiskState("pending"), "", ("pending", "")),
        (DiskState("pending"), "PENDING", ("queued", "")),
        (DiskState("pending"), "RUNNING", ("running", "")),  # it is starting
        (DiskState("pending"), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (DiskState("pending"), "CANCELLED", ("stopped", "cancelled")),
        (DiskState("done"), "RUNNING", ("done", "")),
        (DiskState("done"), "TIMEOUT", ("done", "")),
        (DiskState("running", **NOW), "COMPLETED", ("running", "")),  # sacct may still report the attempt before
        (DiskState("running", **NOW), "FAILED", ("running", "")),
        (DiskState("running", attempt="5_0.1", age=60), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (DiskState("running", attempt="5_0.1", age=60), "FAILED", ("failed", "killed")),
        (DiskState("running", attempt="5_0.1", age=60), "NODE_FAIL", ("failed", "node failure")),
        (DiskState("running", attempt="direct", age=60), "CANCELLED", ("running", "")),  # another command's
        (DiskState("failed", "killed", **NOW), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (DiskState("failed", "killed", **NOW), "CANCELLED", ("stopped", "cancelled")),  # it was killed before it saved
        (DiskState("failed", "killed", **NOW), "FAILED", ("failed", "killed")),
        (DiskState("failed", "killed", **NOW), "TIMEOUT", ("failed", "time limit")),
        (DiskState("failed", "killed", **NOW), "", ("failed", "killed")),
        (DiskState("failed", "exception", **NOW), "FAILED", ("failed", "exception")),
        (DiskState("failed", "exception", **NOW), "RUNNING", ("failed", "exception")),  # it is about to exit
        (DiskState("failed", "exception", **NOW), "CANCELLED", ("failed", "exception")),
        (
            DiskState("failed", "exception", **NOW),
            "OUT_OF_MEMORY",
            ("failed", "out of memory"),
        ),  # another of its processes was killed
        (DiskState("failed", "exception", attempt="4.0"), "PENDING", ("queued", "")),  # submitted again
        (DiskState("failed", "exception", attempt="4.0"), "RUNNING", ("running", "")),
        (DiskState("failed", "exception", attempt="4.0"), "TIMEOUT", ("failed", "time limit")),
        (DiskState("failed", "exception", attempt="4.0"), "CANCELLED", ("failed", "exception")),
        (DiskState("failed", "time limit", saved=True, **NOW), "FAILED", ("failed", "time limit")),
        (DiskState("stopped", saved=True, **NOW), "PENDING", ("queued", "")),
        (DiskState("stopped", saved=True, **NOW), "RUNNING", ("stopped", "")),
        (DiskState("stopped", saved=True, **NOW), "CANCELLED", ("stopped", "cancelled")),
        (DiskState("stopped", saved=True, **NOW), "TIMEOUT", ("stopped", "time limit")),  # its work is saved
        (DiskState("stopped", saved=True, attempt="5_0.0"), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (DiskState("stopped", saved=True, **NOW), "PREEMPTED", ("stopped", "preempted")),  # the site does not requeue
    ],
)
def test_disk_and_slurm_together_determine_the_state(disk: DiskState, slurm: str, expected: tuple[str, str]) -> None:
    assert combine_states(disk, SlurmJob(**JOB, state=slurm)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (DiskState("pending"), ("queued", "")),
        (DiskState("stopped", attempt="5_0.0"), ("queued", "")),  # it has stopped, and its job was requeued
        (DiskState("failed", "exception", attempt="5_0.0"), ("failed", "exception")),  # its job skips it
        (DiskState("failed", "exception", attempt="4.0"), ("queued", "")),  # submitted again
        (DiskState("running", **NOW), ("running", "")),
        (DiskState("running", attempt="direct", age=60), ("running", "")),
        (DiskState("done"), ("done", "")),
    ],
)
def test_a_trial_in_a_job_of_several_is_pending_until_its_turn(disk: DiskState, expected: tuple[str, str]) -> None:
    assert combine_states(disk, SlurmJob(**JOB, state="RUNNING", is_shared=True)) == expected  # type: ignore[arg-type]


def test_the_reason_of_a_trial_in_a_job_of_several_is_its_turn(tmp_path: Path) -> None:
    row = determine_status(make(tmp_path, "a"), [SlurmJob("5_0", "train", "RUNNING", "n7", is_shared=True)])
    assert (row.state, row.reason) == ("queued", "waiting: its turn in the job")


# Run directories


def make(sweep: Path, name: str, **files: Any) -> RunDirectory:
    """Create a run directory with a config and JSON files, whose names are keywords with __ in place of a dot."""
    run = RunDirectory(sweep / name)
    (run.path / "eval").mkdir(parents=True)
    (run.path / "config.yaml").write_text("method: dann\nmodel:\n  steps: 7\ntrain:\n  seed: 3\n  steps: 240\n")
    write(run, **files)
    return run


def write(run: RunDirectory, **files: Any) -> None:
    for name, content in files.items():
        (run.path / name.replace("__", ".")).write_text(json.dumps(content))


def beat(state: str = "running", attempt: str = "5_0.0", **more: Any) -> dict[str, Any]:
    return {"state": state, "attempt": attempt, "step": 90, "rate": 4.0, "eta": 37.5, "losses": {"label": 0.5}} | more


def test_the_status_of_a_running_trial_has_job_node_step_rate_and_losses(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(run, status__json=beat(time=time.time(), host="n7", steps=240))
    row = determine_status(run, [SlurmJob("5_0", "train", "RUNNING", "n7")])
    assert (row.trial, row.state, row.reason, row.job, row.node) == ("a", "running", "", "5_0", "n7")
    assert (row.step, row.steps, row.rate, row.eta, row.metrics) == (90, 240, 4.0, 37.5, {"label": 0.5})


def test_a_pending_trial_has_its_number_of_steps(tmp_path: Path) -> None:
    assert determine_status(make(tmp_path, "a")).steps == 240


def test_interruptions_are_counted_over_all_jobs_of_a_trial(tmp_path: Path) -> None:
    """Slurm reports only REQUEUED for a job that requeued itself; the run directory records why it did."""
    run = make(tmp_path, "a")
    write(run, __preemptions__json={"attempts": ["5_0.1"]}, __time_limits__json={"attempts": ["9.0"]})
    jobs = [
        SlurmJob("5_0", "train", "CANCELLED", former=("PREEMPTED", "REQUEUED", "NODE_FAIL")),
        SlurmJob("6_0", "eval", "CANCELLED"),
        SlurmJob("9", "train", "PENDING", waits="QOSMaxJobsPerUserLimit", former=("REQUEUED", "REQUEUED")),
    ]
    row = determine_status(run, jobs)
    assert (row.state, row.cause, row.job) == ("queued", "requeued", "9")
    assert row.reason == "preempted ×2, node failure, time limit, requeued; waiting: QOSMaxJobsPerUserLimit"


def test_interruptions_that_slurm_has_forgotten_are_read_from_the_run_directory(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(
        run,
        status__json=beat("stopped", "5_0.2"),
        stopped__5_0__2__json={},
        __preemptions__json={"attempts": ["5_0.0", "5_0.1"]},
    )
    assert determine_status(run, [SlurmJob("5_0", "train")]).reason == "preempted ×2"


def test_a_trial_that_exited_without_an_error_record_is_failed(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(run, status__json=beat(attempt="local-7", time=time.time() - 1000))
    row = determine_status(run)
    assert (row.state, row.cause, row.reason) == ("failed", "killed", "exited without an error record after step 90")


@pytest.mark.parametrize(
    ("line", "cause", "reason"),
    [
        ("slurmstepd-n1: error: Exceeded job memory limit", "out of memory", "out of memory; raise resources.mem_gb"),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed.",
            "out of memory",
            "out of memory; raise resources.mem_gb",
        ),
        (
            "ModuleNotFoundError: no torch\nsrun: error: n1: task 0",
            "exit code",
            "exit code 1: ModuleNotFoundError: no torch",
        ),
        ("", "exit code", "exit code 1"),
    ],
)
def test_a_failure_without_a_marker_is_explained_by_the_log(tmp_path: Path, line: str, cause: str, reason: str) -> None:
    run = make(tmp_path, "a")
    (tmp_path / "slurm" / "5_0").mkdir(parents=True)
    (tmp_path / "slurm" / "5_0" / "5_0_0_log.err").write_text(line)
    row = determine_status(run, [SlurmJob("5_0", "train", "FAILED", code="1:0")])
    assert (row.state, row.cause, row.reason) == ("failed", cause, reason)


@pytest.mark.parametrize(
    ("job", "files", "cause", "reason"),
    [
        (SlurmJob("6", "eval", "PENDING", waits="Dependency"), {}, "", "evaluation waiting: Dependency"),
        (SlurmJob("6", "eval", "RUNNING"), {}, "", "evaluating"),
        (SlurmJob("6", "eval", "OUT_OF_MEMORY"), {}, "evaluation", "evaluation: out of memory"),
        (SlurmJob("6", "eval", "FAILED"), {"failed.json": {"error": "no"}}, "evaluation", "evaluation failed: no"),
        (SlurmJob("6", "eval", "COMPLETED"), {"metrics.json": {"metrics": {"fid": 3.0}}}, "", ""),
        (SlurmJob("6", "eval"), {"metrics.json": {"metrics": {"fid": 3.0}}}, "", ""),
    ],
)
def test_the_status_of_a_done_trial_includes_its_evaluation(
    tmp_path: Path, job: SlurmJob, files: dict[str, Any], cause: str, reason: str
) -> None:
    run = make(tmp_path, "a", done={})
    for name, content in files.items():
        (run.path / "eval" / name).write_text(json.dumps(content))
    row = determine_status(run, [SlurmJob("5", "train", "COMPLETED", former=("PREEMPTED",)), job])
    assert (row.state, row.cause, row.reason) == ("done", cause, reason)
    assert is_failed(row) == (cause != "")


def test_counts_are_split_by_cause(tmp_path: Path) -> None:
    trials = [make(tmp_path, name) for name in "abcd"]
    jobs = [
        SlurmJob("1", "train", "OUT_OF_MEMORY"),
        SlurmJob("2", "train", "TIMEOUT"),
        SlurmJob("3", "train", "PENDING", former=("PREEMPTED",)),
    ]
    rows = [determine_status(run, [job]) for run, job in zip(trials, jobs, strict=False)] + [
        determine_status(trials[3])
    ]
    assert table.count_states(rows) == "2 failed (1 out of memory, 1 time limit)  1 pending  1 queued (1 preempted)"
    assert [table.name_state(row) for row in rows] == ["out of memory", "time limit", "preempted", "pending"]


def test_repeated_causes_are_counted() -> None:
    assert count_causes([]) == ""
    assert count_causes(["preempted", "node failure", "preempted"]) == "preempted ×2, node failure"


# Table


@pytest.fixture
def statuses(tmp_path: Path) -> list[TrialStatus]:
    """Return the statuses of a running trial, of a failed one with a long error, and of a queued one."""
    statuses = []
    jobs = [SlurmJob("1234567_0", "train", "RUNNING", "n[1-2]"), None, SlurmJob("7", "train", "PENDING")]
    for number, job in enumerate(jobs):
        run = make(tmp_path, f"dann,gamma={number},lr=0.001,momentum=0.9,seed={number}-{number:08x}")
        if job is None:
            error = "RuntimeError: " + "something went wrong " * 10
            write(run, failed__7__0__json={"error": error, "rank": 0, "attempt": "7.0"})
        elif job.state == "RUNNING":
            write(run, status__json=beat(attempt="1234567_0.0", time=time.time(), host="n1", steps=240))
        statuses.append(determine_status(run, [job] if job else []))
    return statuses


def test_costs_are_shown_for_each_trial_and_summed(statuses: list[TrialStatus]) -> None:
    costs = {"device_hours": 0.25, "attempts": 2, "startup_seconds": 5.0, "steps_per_second": 12.5, "data_share": 0.021}
    first, second = statuses[0], replace(statuses[1], costs=costs)
    head, *rows = table.render_costs([first, second], [first, second, second]).split("\n")
    cells = [line.split() for line in rows]
    assert re.split("  +", head)[:6] == ["trial", "device-hours", "attempts", "start-up s", "steps/s", "data"]
    assert cells[0] == [first.trial, *["-"] * 10]
    assert cells[1][:6] == [second.trial, "0.2500", "2", "5.0", "12.5", "2.1%"]
    assert rows[2].split()[:5] == ["all", "trials", "0.5000", "4", "10.0"]
    assert {len(line) for line in rows} == {len(head)}


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_wider_than_the_terminal(statuses: list[TrialStatus], width: int) -> None:
    lines = table.render(statuses, width).plain.split("\n")
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for status in statuses:
        assert status.trial[-8:] in text, "the identity is shown"
    assert "  90/240" in text
    assert text.count("wrong") == 10, "the whole reason is shown"
    assert ("n[1-2]" in text) == (width > 100)


def test_a_pipe_gets_one_complete_line_per_trial(statuses: list[TrialStatus]) -> None:
    header, *lines = table.render(statuses).plain.split("\n")
    assert header.split() == ["trial", "state", "job", "node", "step", "steps/s", "left", "newest"]
    assert [line.split()[0] for line in lines] == [status.trial for status in statuses]
    assert "1234567_0  n[1-2]" in lines[0]
    assert lines[0].endswith("38 s  label 0.5")


def test_a_live_table_shows_urgent_trials_first(statuses: list[TrialStatus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "12")
    many = [*statuses[2:] * 50, *statuses[:2]]
    lines = table.render_fitted(many, many, ["note: x"]).plain.split("\n")
    assert len(lines) <= 12
    assert "running" in lines[1]
    assert "failed" in lines[2]
    assert lines[-3].startswith("… and ")
    assert lines[-2:] == ["1 failed (1 exception)  50 queued  1 running", "note: x"]


def test_the_status_of_three_thousand_trials_takes_less_than_five_seconds(tmp_path: Path) -> None:
    """Measured in CPU time, which does not depend on how busy the machine is."""
    for number in range(3000):
        run = make(tmp_path / "sweep", f"dann,gamma={number % 7},seed={number}-{number:08x}")
        write(run, status__json=beat(attempt=f"5_{number}.0", time=time.time(), host="n1", steps=240))
        if number % 3 == 0:
            write(run, done={})
        if number % 3 == 1:
            write(run, **{f"failed__5_{number}__0__json": {"error": "RuntimeError: no", "rank": 0}})
    before, began = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "jobs/status.py", str(tmp_path / "sweep")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"3,000 trials: {took:.2f} s CPU time, {time.monotonic() - began:.2f} s wall time")
    assert len(done.stdout.splitlines()) == 3002
    assert took < 5


OPENS: list[str] = []  # files and folders that were opened while the list is not empty


def count_open(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened; hooks cannot be removed, so this one does nothing at other times."""
    if OPENS and event in ("open", "os.listdir", "os.scandir"):
        OPENS.append(str(arguments[0]))


def count_opens(sweep: Path) -> tuple[int, list[TrialStatus]]:
    """Return how many files and folders a look at a sweep opens, and what it sees."""
    OPENS.append("start")
    statuses = determine_statuses(sweep, {})
    number = len(OPENS) - 1
    OPENS.clear()
    return number, statuses


def test_the_status_of_three_thousand_trials_opens_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 are done, 500 failed, 490 have stopped, 500 have not started, and 10 train."""
    monkeypatch.setattr(index, "SETTLED", 0.0)
    sweep = tmp_path / "sweep"
    for number in range(3000):
        run = make(sweep, f"dann,seed={number}-{number:08x}")
        kind = number % 6
        attempt = f"5_{number}.0"
        if kind < 5:
            state = ("done", "done", "done", "failed", "stopped")[kind] if number >= 60 or kind < 4 else "running"
            write(run, status__json=beat(state, attempt, time=time.time(), host="n1", steps=240))
        if kind < 3:
            write(run, done={})
            write(run, **{"eval/metrics__json": {"metrics": {"accuracy/target": number / 3000}}} if number else {})
        if kind == 3:
            write(run, **{f"failed__{attempt.replace('.', '__')}__json": {"error": "no", "rank": 0}})
            write(run, **{"__preemptions__json": {"attempts": [attempt]}})
        if kind == 4 and number >= 60:
            write(run, **{f"stopped__{attempt.replace('.', '__')}__json": {}})
    sys.addaudithook(count_open)
    first, before = count_opens(sweep)
    assert before == [determine_status(run) for run in find_runs(sweep)]
    for run in (run for run in find_runs(sweep) if run.status().get("state") == "running"):
        write(run, status__json=run.status() | {"step": 91})
    number, again = count_opens(sweep)
    print(f"3,000 trials, 10 of them running: {first} files are opened at the first look, {number} at the second")
    assert first > 6000
    assert number < 60
    assert [status.step for status in again if status.state == "running"] == [91] * 10
    assert again == [determine_status(run) for run in find_runs(sweep)]

    # What changes is read again, whatever the index says.
    changed, failed, resumed = [run for run in find_runs(sweep) if run.is_done()][1:4]
    write(changed, **{"eval/metrics__json": {"metrics": {"accuracy/target": 2.0}}})
    write(failed, **{"eval/failed__json": {"error": "out of memory"}})
    (resumed.path / "done").unlink()
    shutil.rmtree(find_runs(sweep)[-1].path)
    _, statuses = count_opens(sweep)
    by_name = {status.trial: status for status in statuses}
    assert len(statuses) == 2999
    assert by_name[changed.name].metrics == {"accuracy/target": 2.0}
    assert by_name[failed.name].reason == "evaluation failed: out of memory"
    assert by_name[resumed.name].state == "stopped"
    assert statuses == [determine_status(run) for run in find_runs(sweep)], "as without an index"
    assert count_opens(sweep)[0] < 50

    damaged: list[Any] = ["", [], {"version": index.VERSION, "trials": {changed.name: {}}}, {"version": 0, "trials": 3}]
    for content in damaged:
        (sweep / ".index.json").write_text(json.dumps(content))
        assert count_opens(sweep)[1] == statuses, content


@pytest.mark.parametrize("marker", ["failed__5_0__0__json", "stopped__5_0__0__json", "done", "__preemptions__json"])
def test_a_marker_within_the_same_tick_of_the_clock_is_seen(tmp_path: Path, marker: str) -> None:
    """Some disks count whole seconds, so that a second change may leave the times as they are."""
    run = make(tmp_path, "dann-00000001")
    write(run, status__json=beat("stopped"))
    times = run.path.stat()
    assert [status.state for status in determine_statuses(tmp_path, {})] == ["stopped"]
    write(run, **{marker: {"attempts": ["5_0.0"]}})
    os.utime(run.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert determine_statuses(tmp_path, {}) == [determine_status(run)]


def test_status_works_without_permission_to_write_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, "dann,seed=0-0a1b2c3d")
    write(run, done={}, status__json=beat(state="done"))

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(index, "SETTLED", 0.0)
    monkeypatch.setattr(index, "write_text", refuse)
    assert [status.state for status in determine_statuses(tmp_path, {})] == ["done"]


# Names and logs


def test_any_unique_part_of_its_name_selects_a_trial(tmp_path: Path) -> None:
    names = ["dann,gamma=1,seed=0-0a1b2c3d", "dann,gamma=10,seed=0-1a1b2c3d", "dann,gamma=1-2a1b2c3d"]
    runs = {name: make(tmp_path, name) for name in names}
    for part, name in ((",seed=0-0", names[0]), ("gamma=10", names[1]), ("2a1b2c3d", names[2]), (names[2], names[2])):
        assert select_trials(tmp_path, [part]) == [runs[name]]
    assert select_trials(tmp_path, [f"{tmp_path}/{names[1]}/"]) == [runs[names[1]]]
    assert select_trials(tmp_path, ["gamma=1,seed=0"]) == [runs[names[0]]], "gamma=10 is another value"
    with pytest.raises(ConfigError, match="'gamma=1' is part of 2 names"):
        select_trials(tmp_path, ["gamma=1"])
    with pytest.raises(ConfigError, match="'seed=0' is part of 2 names") as several:
        select_trials(tmp_path, ["2a1b2c3d", "seed=0"])
    assert names[0] in str(several.value)
    assert names[2] not in str(several.value)
    with pytest.raises(ConfigError, match=r"'gamma=7' is part of no trial's name(.|\n)*gamma=10"):
        select_trials(tmp_path, ["gamma=7"])
    with pytest.raises(ConfigError, match="no trials there"):
        select_trials(tmp_path / "none", ["x"])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Create a sweep with two submissions to Slurm: of both trials, with logs, then of the first, without logs yet."""
    for name in "ab":
        make(tmp_path, name)
    lines = [
        {
            "arrays": [
                {"stage": "train", "id": "5", "trials": ["a", "b"]},
                {"stage": "eval", "id": "6", "trials": ["a", "b"]},
            ]
        },
        {"arrays": [{"stage": "train", "id": "9", "trials": ["a"]}]},
    ]
    (tmp_path / "submissions.jsonl").write_text("".join(json.dumps({"time": 0} | line) + "\n" for line in lines))
    for job, task in (("5_0", 0), ("5_0", 1), ("5_1", 0), ("6_0", 0)):
        folder = tmp_path / "slurm" / job
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("out", "err"):
            (folder / f"{job}_{task}_log.{kind}").write_text("".join(f"{job}.{task} {kind} {n}\n" for n in range(100)))
    return tmp_path


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_the_log_files_are_those_of_the_newest_job_that_has_printed(sweep: Path) -> None:
    both = ["5_0_1_log.out", "5_0_1_log.err", "5_0_0_log.out", "5_0_0_log.err"]
    assert names(newest_log_files(sweep, "a", "train")) == both
    assert names(newest_log_files(sweep, "a", "eval")) == ["6_0_0_log.out", "6_0_0_log.err"]
    assert newest_log_files(sweep, "b", "eval") == []
    local_log = sweep / "a" / "train.log"
    local_log.write_text("local\n")
    assert newest_log_files(sweep, "a", "train") == [local_log]
    os.utime(local_log, (1, 1))  # older than the logs on Slurm
    assert names(newest_log_files(sweep, "a", "train")) == both
    (sweep / "slurm" / "9").mkdir()
    (sweep / "slurm" / "9" / "9_0_log.err").touch()
    assert names(newest_log_files(sweep, "a", "train")) == ["9_0_log.err"]


def logs(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "jobs/logs.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_logs_prints_the_last_lines_of_each_file(sweep: Path) -> None:
    result = logs(str(sweep), "b", "-n", "2")
    assert result.returncode == 0
    folder = sweep / "slurm" / "5_1"
    assert result.stdout == (
        f"==> {folder}/5_1_0_log.out <==\n5_1.0 out 98\n5_1.0 out 99\n"
        f"==> {folder}/5_1_0_log.err <==\n5_1.0 err 98\n5_1.0 err 99\n"
    )
    silent = logs(str(sweep), "b", "--stage", "eval")
    assert (silent.returncode, silent.stdout) == (1, "")
    assert "has printed nothing yet (pending)" in silent.stderr
    wrong = logs(str(sweep), "c")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert re.fullmatch(r"error: .*'c' is part of no trial's name; give one of\n  a\n  b\n", wrong.stderr)


def test_logs_follows_a_trial_to_its_end(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(run, status__json=beat(attempt="direct", time=time.time() + 100, host="n7"))
    log = run.path / "train.log"
    log.write_text("".join(f"line {n}\n" for n in range(50)))
    follower = subprocess.Popen(
        [sys.executable, "jobs/logs.py", str(tmp_path), "a", "-f", "-n", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout
    lines = [follower.stdout.readline() for _ in range(2)]
    with log.open("a") as file:
        file.write("more\n")
    lines.append(follower.stdout.readline())
    log.write_text("rewritten\n")  # shorter than before
    lines.append(follower.stdout.readline())
    write(run, done={})
    rest, errors = follower.communicate(timeout=30)
    assert [*lines, rest] == [f"==> {log} <==\n", "line 49\n", "more\n", "rewritten\n", ""]
    assert (follower.returncode, errors) == (0, "a: done\n")


def test_cancelling_a_finished_sweep_does_nothing(sweep: Path) -> None:
    (sweep / "submissions.jsonl").unlink()
    command = [sys.executable, "jobs/cancel.py", str(sweep)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing to cancel" in result.stdout
    assert len(find_runs(sweep)) == 2


def test_statuses_from_the_backend_are_recorded_for_the_report(tmp_path: Path) -> None:
    make(tmp_path, "lost", status__json={"state": "running", "attempt": "7.1", "time": 0, "step": 5})
    make(tmp_path, "done", done={})

    class Backend:
        def jobs(self, sweep: Path) -> tuple[dict[str, list[SlurmJob]], list[str]]:
            return {"lost": [SlurmJob("7", "train", "NODE_FAIL", former=("PREEMPTED",))]}, []

    statuses, _ = query_statuses(tmp_path, Backend())  # type: ignore[arg-type]
    states = read_job_states(tmp_path)
    assert {trial: (state.state, state.reason) for trial, state in states.items()} == {
        status.trial: (status.state, status.reason) for status in statuses
    }
    assert (states["lost"].state, states["lost"].reason) == (
        "failed",
        "preempted, node failure; exited without an error record after step 5",
    )
    assert states["done"].state == "done"
    (tmp_path / "jobs.json").write_text('{"lost": {"odd": 1}, "half')
    assert read_job_states(tmp_path) == {}
