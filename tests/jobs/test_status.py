"""Where a trial stands, given its run directory and what Slurm says; how it is shown; which logs are its own."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import status
from jobs.backends.slurm import accounting
from jobs.backends.slurm.accounting import Job, accounted, counts, ending, join, listed
from jobs.logs import choose
from jobs.tracking import table
from jobs.tracking.log_files import newest
from jobs.tracking.state import Disk, judge, stand
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory, find_runs

ROOT = Path(__file__).parents[2]
MY_NAME = accounting.user(str(os.getuid()))

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


def test_sacct_tells_every_turn_of_a_job() -> None:
    turns = accounted(SACCT)
    assert {job: [turn.state for turn in found] for job, found in turns.items()} == {
        "5_0": ["PREEMPTED", "CANCELLED"],
        "5_1": ["REQUEUED", "RUNNING"],
        "5_[]": ["PENDING"],
        "24": ["FAILED"],
    }
    assert [turn.nodes for turn in turns["5_0"]] == ["n1", ""]
    assert ending(turns["5_0"][-1]) == f"cancelled by {MY_NAME}"
    assert ending(turns["24"][0]) == "killed by SIGKILL"


def test_memory_that_ran_out_in_a_step_is_the_jobs_reason() -> None:
    """As cgroups have it, which the Slurm of the tests cannot use; the form is that of Slurm's manual."""
    rows = ["7|FAILED|1:0|n1", "7.batch|FAILED|1:0|n1", "7.0|OUT_OF_MEMORY|0:125|n1", "8|OUT_OF_MEMORY|0:125|n1"]
    assert {job: ending(turn) for job, (turn,) in accounted("\n".join(rows)).items()} == {
        "7": "out of memory",
        "8": "out of memory",
    }


def test_squeue_tells_the_present() -> None:
    live = listed(SQUEUE)
    assert {job: (now.state, now.waits, restarts) for job, (now, restarts) in list(live.items())[:2]} == {
        "5_2": ("PENDING", "JobArrayTaskLimit", 0),
        "5_1": ("RUNNING", "", 1),
    }
    assert [ending(live[job][0]) for job in "1234"] == ["killed by SIGKILL", "exit code 3", "killed by SIGKILL", ""]


@pytest.mark.parametrize(
    ("turns", "squeue", "state", "former"),
    [
        ("5_0", "", "CANCELLED", ("PREEMPTED",)),  # it has left the queue
        ("5_1", SQUEUE, "RUNNING", ("REQUEUED",)),
        ("5_1", "", "", ("REQUEUED",)),  # no queue, no job: it has ended, and sacct has not heard of it
        ("5_1", None, "RUNNING", ("REQUEUED",)),  # there is nobody but sacct
        ("5_[]", SQUEUE.replace("5_2", "5_9"), "", ()),
        ("", "5_1|PENDING|BeginTime||2|0|", "PENDING", ("REQUEUED", "REQUEUED")),  # there is nobody but squeue
        ("24", "24|COMPLETING|None|n1|0|0|", "FAILED", ()),
        ("", "", "", ()),
        ("", None, "", ()),
    ],
)
def test_squeue_wins_over_sacct(turns: str, squeue: str | None, state: str, former: tuple[str, ...]) -> None:
    asked = Job("5_1" if turns in ("", "5_1") else "5_2" if "[" in turns else turns, "train")
    found = join(asked, accounted(SACCT).get(turns, []), None if squeue is None else listed(squeue))
    assert (found.id, found.stage, found.state, found.former) == (asked.id, "train", state, former)


NOW: dict[str, Any] = {"attempt": "5_0.1", "age": 1.0}
JOB = {"id": "5_0", "stage": "train", "former": ("PREEMPTED",)}


@pytest.mark.parametrize(
    ("disk", "slurm", "expected"),
    [
        (Disk("pending"), "", ("pending", "")),
        (Disk("pending"), "PENDING", ("queued", "")),
        (Disk("pending"), "RUNNING", ("running", "")),  # it starts
        (Disk("pending"), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (Disk("pending"), "CANCELLED", ("stopped", "cancelled")),
        (Disk("done"), "RUNNING", ("done", "")),
        (Disk("done"), "TIMEOUT", ("done", "")),
        (Disk("running", **NOW), "COMPLETED", ("running", "")),  # sacct may speak of the turn before
        (Disk("running", **NOW), "FAILED", ("running", "")),
        (Disk("running", attempt="5_0.1", age=60), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (Disk("running", attempt="5_0.1", age=60), "FAILED", ("failed", "killed")),
        (Disk("running", attempt="5_0.1", age=60), "NODE_FAIL", ("failed", "node failure")),
        (Disk("running", attempt="direct", age=60), "CANCELLED", ("running", "")),  # somebody else's
        (Disk("failed", "killed", **NOW), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (Disk("failed", "killed", **NOW), "CANCELLED", ("stopped", "cancelled")),  # it did not save in time
        (Disk("failed", "killed", **NOW), "FAILED", ("failed", "killed")),
        (Disk("failed", "killed", **NOW), "TIMEOUT", ("failed", "time limit")),
        (Disk("failed", "killed", **NOW), "", ("failed", "killed")),
        (Disk("failed", "exception", **NOW), "FAILED", ("failed", "exception")),
        (Disk("failed", "exception", **NOW), "RUNNING", ("failed", "exception")),  # it is about to leave
        (Disk("failed", "exception", **NOW), "CANCELLED", ("failed", "exception")),
        (Disk("failed", "exception", **NOW), "OUT_OF_MEMORY", ("failed", "out of memory")),  # what a peer died of
        (Disk("failed", "exception", attempt="4.0"), "PENDING", ("queued", "")),  # submitted again
        (Disk("failed", "exception", attempt="4.0"), "RUNNING", ("running", "")),
        (Disk("failed", "exception", attempt="4.0"), "TIMEOUT", ("failed", "time limit")),
        (Disk("failed", "exception", attempt="4.0"), "CANCELLED", ("failed", "exception")),
        (Disk("failed", "time limit", saved=True, **NOW), "FAILED", ("failed", "time limit")),
        (Disk("stopped", saved=True, **NOW), "PENDING", ("queued", "")),
        (Disk("stopped", saved=True, **NOW), "RUNNING", ("stopped", "")),
        (Disk("stopped", saved=True, **NOW), "CANCELLED", ("stopped", "cancelled")),
        (Disk("stopped", saved=True, **NOW), "TIMEOUT", ("stopped", "time limit")),  # nothing is lost
        (Disk("stopped", saved=True, attempt="5_0.0"), "OUT_OF_MEMORY", ("failed", "out of memory")),
        (Disk("stopped", saved=True, **NOW), "PREEMPTED", ("stopped", "preempted")),  # the site does not requeue
    ],
)
def test_disk_and_slurm_together_say_where_a_trial_stands(disk: Disk, slurm: str, expected: tuple[str, str]) -> None:
    assert judge(disk, Job(**JOB, state=slurm)) == expected  # type: ignore[arg-type]


# Run directories


def make(sweep: Path, name: str, **files: Any) -> RunDirectory:
    """A run directory with a config and some files: name, with __ for a point, -> JSON."""
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


def test_a_row_holds_what_a_user_asks_for(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(run, status__json=beat(time=time.time(), host="n7", steps=240))
    row = stand(run, [Job("5_0", "train", "RUNNING", "n7")])
    assert (row.trial, row.state, row.reason, row.job, row.node) == ("a", "running", "", "5_0", "n7")
    assert (row.step, row.steps, row.rate, row.eta, row.metrics) == (90, 240, 4.0, 37.5, {"label": 0.5})


def test_a_trial_that_has_not_begun_knows_its_steps(tmp_path: Path) -> None:
    assert stand(make(tmp_path, "a")).steps == 240


def test_former_turns_are_counted_over_all_jobs_of_a_trial(tmp_path: Path) -> None:
    """What a job asks for by itself is REQUEUED to Slurm; its launcher has noted why."""
    run = make(tmp_path, "a")
    write(run, __preemptions__json={"attempts": ["5_0.1"]}, __time_limits__json={"attempts": ["9.0"]})
    jobs = [
        Job("5_0", "train", "CANCELLED", former=("PREEMPTED", "REQUEUED", "NODE_FAIL")),
        Job("6_0", "eval", "CANCELLED"),
        Job("9", "train", "PENDING", waits="QOSMaxJobsPerUserLimit", former=("REQUEUED", "REQUEUED")),
    ]
    row = stand(run, jobs)
    assert (row.state, row.cause, row.job) == ("queued", "requeued", "9")
    assert row.reason == "preempted ×2, node failure, time limit, requeued; waits: QOSMaxJobsPerUserLimit"


def test_what_slurm_has_forgotten_the_run_directory_still_knows(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(
        run,
        status__json=beat("stopped", "5_0.2"),
        stopped__5_0__2__json={},
        __preemptions__json={"attempts": ["5_0.0", "5_0.1"]},
    )
    assert stand(run, [Job("5_0", "train")]).reason == "preempted ×2"


def test_a_process_that_died_without_a_word_has_not_been_stopped(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    write(run, status__json=beat(attempt="local-7", time=time.time() - 1000))
    row = stand(run)
    assert (row.state, row.cause, row.reason) == ("failed", "killed", "died without a word after step 90")


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
def test_a_job_that_left_no_marker_is_explained_by_its_log(tmp_path: Path, line: str, cause: str, reason: str) -> None:
    run = make(tmp_path, "a")
    (tmp_path / "slurm" / "5_0").mkdir(parents=True)
    (tmp_path / "slurm" / "5_0" / "5_0_0_log.err").write_text(line)
    row = stand(run, [Job("5_0", "train", "FAILED", code="1:0")])
    assert (row.state, row.cause, row.reason) == ("failed", cause, reason)


@pytest.mark.parametrize(
    ("job", "files", "cause", "reason"),
    [
        (Job("6", "eval", "PENDING", waits="Dependency"), {}, "", "evaluation waits: Dependency"),
        (Job("6", "eval", "RUNNING"), {}, "", "is evaluated"),
        (Job("6", "eval", "OUT_OF_MEMORY"), {}, "evaluation", "evaluation: out of memory"),
        (Job("6", "eval", "FAILED"), {"failed.json": {"error": "no"}}, "evaluation", "evaluation failed: no"),
        (Job("6", "eval", "COMPLETED"), {"metrics.json": {"metrics": {"fid": 3.0}}}, "", ""),
        (Job("6", "eval"), {"metrics.json": {"metrics": {"fid": 3.0}}}, "", ""),
    ],
)
def test_of_what_is_trained_the_evaluation_is_told(
    tmp_path: Path, job: Job, files: dict[str, Any], cause: str, reason: str
) -> None:
    run = make(tmp_path, "a", done={})
    for name, content in files.items():
        (run.path / "eval" / name).write_text(json.dumps(content))
    row = stand(run, [Job("5", "train", "COMPLETED", former=("PREEMPTED",)), job])
    assert (row.state, row.cause, row.reason) == ("done", cause, reason)
    assert bool(status.failed([row])) == (cause != "")


def test_counts_tell_the_causes_apart(tmp_path: Path) -> None:
    trials = [make(tmp_path, name) for name in "abcd"]
    jobs = [
        Job("1", "train", "OUT_OF_MEMORY"),
        Job("2", "train", "TIMEOUT"),
        Job("3", "train", "PENDING", former=("PREEMPTED",)),
    ]
    rows = [stand(run, [job]) for run, job in zip(trials, jobs, strict=False)] + [stand(trials[3])]
    assert table.count(rows) == "2 failed (1 out of memory, 1 time limit)  1 pending  1 queued (1 preempted)"
    assert [table.word(row) for row in rows] == ["out of memory", "time limit", "preempted", "pending"]


def test_counts_say_how_often() -> None:
    assert counts([]) == ""
    assert counts(["preempted", "node failure", "preempted"]) == "preempted ×2, node failure"


# As it is shown


@pytest.fixture
def rows(tmp_path: Path) -> list[Any]:
    """One that runs, one that failed with a long error, one that waits."""
    found = []
    for number, job in enumerate([Job("1234567_0", "train", "RUNNING", "n[1-2]"), None, Job("7", "train", "PENDING")]):
        run = make(tmp_path, f"dann,gamma={number},lr=0.001,momentum=0.9,seed={number}-{number:08x}")
        if job is None:
            error = "RuntimeError: " + "something went wrong " * 10
            write(run, failed__7__0__json={"error": error, "rank": 0, "attempt": "7.0"})
        elif job.state == "RUNNING":
            write(run, status__json=beat(attempt="1234567_0.0", time=time.time(), host="n1", steps=240))
        found.append(stand(run, [job] if job else []))
    return found


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_wider_than_the_terminal(rows: list[Any], width: int) -> None:
    lines = table.draw(rows, width).plain.split("\n")
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in rows:
        assert row.trial[-8:] in text, "what tells it from all others"
    assert "  90/240" in text
    assert text.count("wrong") == 10, "a reason is told in full"
    assert ("n[1-2]" in text) == (width > 100)


def test_a_pipe_gets_a_line_per_trial_with_everything(rows: list[Any]) -> None:
    header, *lines = table.draw(rows).plain.split("\n")
    assert header.split() == ["trial", "state", "job", "node", "step", "steps/s", "left", "newest"]
    assert [line.split()[0] for line in lines] == [row.trial for row in rows]
    assert "1234567_0  n[1-2]" in lines[0]
    assert lines[0].endswith("38 s  label 0.5")


def test_a_live_table_shows_first_what_is_urgent(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "12")
    many = [*rows[2:] * 50, *rows[:2]]
    lines = table.fit(many, many, ["note: x"]).plain.split("\n")
    assert len(lines) <= 12
    assert "running" in lines[1]
    assert "failed" in lines[2]
    assert lines[-3].startswith("… and ")
    assert lines[-2:] == ["1 failed (1 exception)  50 queued  1 running", "note: x"]


def test_three_thousand_trials_take_about_a_second(tmp_path: Path) -> None:
    """On a busy machine more; the time of the processor is what counts."""
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
    print(f"3,000 trials: {took:.2f} s of a processor, {time.monotonic() - began:.2f} s by the clock")
    assert len(done.stdout.splitlines()) == 3002
    assert took < 5


# Names and logs


def test_a_trial_is_found_by_any_part_that_no_other_name_has(tmp_path: Path) -> None:
    names = ["dann,gamma=1,seed=0-0a1b2c3d", "dann,gamma=10,seed=0-1a1b2c3d", "dann,gamma=1-2a1b2c3d"]
    found = {name: make(tmp_path, name) for name in names}
    for part, name in ((",seed=0-0", names[0]), ("gamma=10", names[1]), ("2a1b2c3d", names[2]), (names[2], names[2])):
        assert choose(tmp_path, [part]) == [found[name]]
    assert choose(tmp_path, [f"{tmp_path}/{names[1]}/"]) == [found[names[1]]]
    with pytest.raises(ConfigError, match="'seed=0' is part of 2 names") as several:
        choose(tmp_path, ["2a1b2c3d", "seed=0"])
    assert names[0] in str(several.value)
    assert names[2] not in str(several.value)
    with pytest.raises(ConfigError, match=r"'gamma=7' is part of no trial's name(.|\n)*gamma=10"):
        choose(tmp_path, ["gamma=7"])
    with pytest.raises(ConfigError, match="no trials there"):
        choose(tmp_path / "none", ["x"])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two submissions to Slurm: of both trials, which printed, then of the first, which has not yet."""
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


def named(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_the_logs_are_those_of_the_newest_job_that_has_printed(sweep: Path) -> None:
    both = ["5_0_1_log.out", "5_0_1_log.err", "5_0_0_log.out", "5_0_0_log.err"]
    assert named(newest(sweep, "a", "train")) == both
    assert named(newest(sweep, "a", "eval")) == ["6_0_0_log.out", "6_0_0_log.err"]
    assert newest(sweep, "b", "eval") == []
    here = sweep / "a" / "train.log"
    here.write_text("here\n")
    assert newest(sweep, "a", "train") == [here]
    os.utime(here, (1, 1))  # of long ago
    assert named(newest(sweep, "a", "train")) == both
    (sweep / "slurm" / "9").mkdir()
    (sweep / "slurm" / "9" / "9_0_log.err").touch()
    assert named(newest(sweep, "a", "train")) == ["9_0_log.err"]


def logs(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "jobs/logs.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_logs_prints_the_end_of_each_file(sweep: Path) -> None:
    said = logs(str(sweep), "b", "-n", "2")
    assert said.returncode == 0
    folder = sweep / "slurm" / "5_1"
    assert said.stdout == (
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
    said = [follower.stdout.readline() for _ in range(2)]
    with log.open("a") as file:
        file.write("more\n")
    said.append(follower.stdout.readline())
    log.write_text("anew\n")  # shorter than before
    said.append(follower.stdout.readline())
    write(run, done={})
    rest, errors = follower.communicate(timeout=30)
    assert [*said, rest] == [f"==> {log} <==\n", "line 49\n", "more\n", "anew\n", ""]
    assert (follower.returncode, errors) == (0, "a: done\n")


def test_there_may_be_nothing_to_cancel(sweep: Path) -> None:
    (sweep / "submissions.jsonl").unlink()
    command = [sys.executable, "jobs/cancel.py", str(sweep)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (said.returncode, said.stderr) == (0, "")
    assert "nothing to cancel" in said.stdout
    assert len(find_runs(sweep)) == 2
