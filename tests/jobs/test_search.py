"""The study as a source of tasks: every setting is accounted for once, whatever is killed; one search end to end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from optuna.trial import TrialState

from jobs import status
from jobs.processes import Task
from jobs.search import JOURNAL
from jobs.search.source import StudySource
from jobs.search.study import RETRY, Study
from jobs.search.submit import begin, complete, list_staged
from jobs.search.summary import rank_parameters, summarize
from jobs.submit import main
from tests import warm
from trainer.config.search import Search, load_search
from trainer.config.sweep import load_trials
from trainer.errors import ConfigError
from trainer.runs.attempt import Attempt
from trainer.runs.costs import PHASES, STARTUP, read_costs
from trainer.runs.directory import RunDirectory, find_runs
from trainer.runs.objective import read_direction, read_importance, read_objectives, write_objective

ROOT = Path(__file__).parents[2]
METRIC = "validation/accuracy/source"
SPACE = {"model.lr": {"loguniform": [1e-4, 0.1]}, "model.gamma": {"uniform": [1, 20]}}
SWEEP: dict[str, Any] = {
    "name": "s",
    "method": "dann",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": 90},
    "search": {
        "metric": METRIC,
        "trials": 12,
        "pruner": {"name": "asha", "first": 10, "factor": 3},
        "space": SPACE,
    },
}


def load(folder: Path, settings: dict[str, Any] | None = None, seeds: int = 1, **changes: Any) -> Search:
    file = folder / "s.yaml"
    content = SWEEP | {"grid": {"train.seed": [*range(seeds)]}} | (settings or {})
    file.write_text(yaml.safe_dump(content | {"search": SWEEP["search"] | changes}))
    search = load_search(file, [])
    assert search
    return complete(search)


def start(folder: Path, search: Search) -> Path:
    sweep = folder / "logs" / "s"
    sweep.mkdir(parents=True, exist_ok=True)
    begin(sweep, search)
    return sweep


def perform(task: Task, attempt: str = "local-1") -> None:
    """Do what a task would do to its run directory: export weights and stop at a rung, or write a made-up value."""
    run = RunDirectory(Path(task.path))
    if task.stage == "objective":
        config = run.config()
        lr, seed = config["model"]["lr"], config["train"]["seed"]
        write_objective(run, int(task.arguments[1]), task.arguments[0], lr + seed + 1e-4 * int(task.arguments[1]))
    elif task.stage == "train":
        step = int(task.arguments[1])
        run.start(Attempt(attempt))
        hours = read_costs(run).get("device_hours", 0.0) + 0.1
        seconds = dict.fromkeys((STARTUP, *PHASES), 0.0)
        run.write_status({"costs": {"device_hours": hours, "attempts": 1, "steps": step, "seconds": seconds}})
        run.write_weights(step, Path.touch, lambda: None)
        (run.finish if step == 90 else run.stop)(Attempt(attempt), step)


def drive(source: StudySource, tasks: int = 10**6) -> int:
    """Perform tasks of a source one by one, as a worker of one slot; return their number."""
    for count in range(tasks):
        task = source.take()
        if task is None or task.stage == "eval":
            return count
        perform(task)
        source.end(task, task.run.is_done())
    return tasks


Open = Callable[[Path, str], StudySource]


def die(source: StudySource) -> None:
    """Release what the kernel releases when a worker is killed, and nothing else."""
    for claim in source.claims.values():
        claim.lock.file.close()


@pytest.fixture
def work() -> Iterator[Open]:
    """Open the source of a worker of an attempt."""
    sources = []

    def work(sweep: Path, attempt: str = "local-1") -> StudySource:
        sources.append(StudySource(sweep, Attempt(attempt)))
        return sources[-1]

    yield work
    for source in sources:
        die(source)


def check_accounts(sweep: Path, search: Search, settings: int, may_fail: bool = False) -> Study:
    """Check that each setting was asked for, ended and told once, and that run directories and study agree.

    `may_fail`: a trial may have failed, and was then tried again.
    """
    study = Study(sweep, search)
    failed = {trial.number for trial in study.trials(TrialState.FAIL)}
    assert failed == {trial.user_attrs[RETRY] for trial in study.trials() if RETRY in trial.user_attrs}
    assert may_fail or not failed
    trials = [trial for trial in study.trials() if trial.number not in failed]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.count_asked() == len(trials) == settings
    ends: dict[int, int] = {}
    for line in (sweep / JOURNAL).read_text().splitlines():
        entry = json.loads(line)
        if entry["op_code"] == 6 and entry["state"] != TrialState.RUNNING:
            ends[entry["trial_id"]] = ends.get(entry["trial_id"], 0) + 1
    assert set(ends.values()) == {1}
    for trial in trials:
        for run in study.runs(trial):
            assert run.state() == ("done" if trial.state == TrialState.COMPLETE else "pruned")
    names = [run.name for trial in trials for run in study.runs(trial)]
    assert sorted(names) == [run.name for run in find_runs(sweep)]
    return study


def test_the_best_settings_are_trained_to_the_end_and_the_others_pruned(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path, seeds=2)
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"))
    study = check_accounts(sweep, search, 12)
    complete_trials = study.trials(TrialState.COMPLETE)
    assert 0 < len(complete_trials) < 12
    for trial in study.trials():
        lr = search.space["model.lr"].decode(trial.params["model.lr"])
        assert trial.value == pytest.approx(lr + 0.5 + 1e-4 * (trial.last_step or 0))  # the mean over seeds


def test_status_shows_the_best_setting_and_writes_it_as_a_sweep_file(
    work: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = load(tmp_path, seeds=2, trials=6)
    sweep, file = start(tmp_path, search), tmp_path / "sweeps" / "winner.yaml"
    words = [str(sweep), "--best", str(file)]
    slots = work(sweep, "local-1")
    drive(slots, 3)
    assert status.main(words) == 2
    assert "no setting of its search is complete" in capsys.readouterr().err
    drive(slots)
    journal = (sweep / JOURNAL).read_bytes()
    assert status.main([str(sweep)]) == status.main(words) == 0
    study = Study(sweep, search)
    assert (sweep / JOURNAL).read_bytes() == journal  # who looks writes nothing
    states, best = capsys.readouterr().out.splitlines()[-2:]
    count = len(study.trials(TrialState.PRUNED))
    assert states.startswith("search: 6 settings: ")
    assert f"{count} pruned ({count / 6:.0%} of those that ended were pruned); " in states
    winner = max(study.trials(TrialState.COMPLETE), key=lambda trial: trial.value or 0)
    names = [run.name for run in study.runs(winner)]
    assert best.startswith(f"best {METRIC} {winner.value:.6g}: model.gamma=")
    assert best.endswith(f"({', '.join(names)})")
    trials = load_trials(file, [])
    assert [t.identity for t in trials] == [name.rpartition("-")[2] for name in names]
    assert [t.config.name for t in trials] == ["winner"] * 2
    assert status.main(words) == 2
    assert "exists; remove it" in capsys.readouterr().err


def test_device_hours_are_a_budget_that_a_later_submission_may_raise(work: Open, tmp_path: Path) -> None:
    """A training is made to have cost a tenth of an hour for each time that it was started."""
    search = load(tmp_path, seeds=2, trials=None, device_hours=0.5, pruner="none")
    sweep = start(tmp_path, search)
    assert drive(work(sweep, "local-1")) == 12  # two trainings and two measurements for each of three settings
    study = check_accounts(sweep, search, 3)
    assert study.device_hours() == pytest.approx(0.6)
    assert study.is_exhausted()
    larger = load(tmp_path, seeds=2, trials=4, device_hours=1, pruner="none")
    drive(work(start(tmp_path, larger), "local-1"))
    assert check_accounts(sweep, larger, 4).device_hours() == pytest.approx(0.8)  # trials ended it
    assert larger.options.budget() == "4 settings or 1 device-hours"


def test_workers_that_are_killed_anywhere_lose_nothing(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path, seed=3)
    sweep = start(tmp_path, search)
    generator = random.Random(0)
    for number in range(10):
        sources = [work(sweep, f"local-{number}{slot}") for slot in range(2)]
        for _ in range(generator.randrange(6)):
            for source in sources:
                if task := source.take():
                    if generator.random() < 0.8:
                        perform(task)
                    source.end(task, task.run.is_done())
        for source in sources:
            die(source)
        if generator.random() < 0.3:  # killed while it wrote a line
            with (sweep / JOURNAL).open("a") as journal:
                journal.write('{"op_code":5,"worker_id":"')
    begin(sweep, search)
    drive(work(sweep, "local-9"))
    check_accounts(sweep, search, 12)


@pytest.mark.parametrize(("sampler", "pruner"), [("qmc", "hyperband"), ("cmaes", "median"), ("gp", "asha")])
def test_every_sampler_and_pruner_runs_to_its_budget(work: Open, tmp_path: Path, sampler: str, pruner: str) -> None:
    search = load(tmp_path, trials=5, sampler=sampler, pruner={"name": pruner, "first": 10, "factor": 3})
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"))
    check_accounts(sweep, search, 5)


def test_what_the_metric_of_a_search_needs_is_staged(tmp_path: Path) -> None:
    search = load(tmp_path, {"eval": {"metrics": ["tsne"]}})
    assert [config.eval.metrics for config in list_staged(search)] == [["tsne", "accuracy"]]


def test_two_workers_never_run_the_same_trial(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, load(tmp_path))
    first, second = (work(sweep, f"local-{i}") for i in range(2))
    paths = [task.path for source in (first, second, first, second) if (task := source.take())]
    assert len({*paths}) == 4


def test_a_requeued_job_resumes_its_own_trial(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, load(tmp_path))
    preempted = work(sweep, "7_0.0")
    task = preempted.take()
    assert task
    perform(replace(task, arguments=("--until", "4")), "7_0.0")
    die(preempted)
    other = work(sweep, "7_1.0").take()
    assert other
    assert other.path != task.path  # it is left to its job, which Slurm restarts
    again = work(sweep, "7_0.1").take()
    assert again == task


def test_a_job_that_stops_between_two_tasks_has_work_left(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, load(tmp_path, pruner="none"))
    source = work(sweep, "7_0.0")
    task = source.take()
    assert task
    perform(task, "7_0.0")  # trained to the end, not measured yet
    assert source.rest() == [task.run]


def test_a_trial_of_a_killed_job_is_resumed_by_the_next_job(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, load(tmp_path))
    killed = work(sweep, "7_0.0")
    task = killed.take()
    die(killed)
    assert work(sweep, "7_1.0").take() == task


def test_a_job_on_a_lost_node_is_superseded_by_its_own_restart(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path)
    sweep = start(tmp_path, search)
    lost = work(sweep, "7_0.0")
    task = lost.take()
    assert task
    restarted = work(sweep, "7_0.1")
    assert restarted.take() == task
    lost.fail(task, "")
    assert {t.state for t in Study(sweep, search).trials()} == {TrialState.RUNNING}  # nothing was told


def test_a_trial_stopped_by_the_user_waits_for_the_next_submission(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, load(tmp_path, trials=1))
    source = work(sweep, "local-1")
    task = source.take()
    assert task
    perform(replace(task, arguments=("--until", "4")))
    source.end(task, finished=False)
    assert source.take() is None
    assert work(sweep, "local-2").take() == task


def test_a_failed_trial_is_recorded_and_retried_by_the_next_submission(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path, trials=2)
    sweep = start(tmp_path, search)
    source = work(sweep, "local-1")
    task = source.take()
    assert task
    source.fail(task, "out of memory")
    drive(source)
    assert [t.state.name for t in Study(sweep, search).trials()].count("FAIL") == 1
    assert Study(sweep, search).count_asked() == 2
    for _ in range(2):  # submitted twice
        study = begin(sweep, search)
    assert [t.path for _ in range(1) if (t := work(sweep, "local-2").take())] == [task.path]
    assert study.count_asked() == 2


def test_a_larger_budget_continues_the_study(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path, trials=3)
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"))
    before = [t.params for t in check_accounts(sweep, search, 3).trials()]
    larger = load(tmp_path, trials=5)
    assert drive(work(start(tmp_path, larger), "local-1")) > 0
    assert [t.params for t in check_accounts(sweep, larger, 5).trials()][:3] == before


def test_importance_is_that_of_all_settings_at_the_first_rung(work: Open, tmp_path: Path) -> None:
    sweep = start(tmp_path, search := load(tmp_path, trials=9))
    drive(work(sweep, "local-1"))
    study = Study(sweep, search)
    assert rank_parameters(study) == {} == read_importance(sweep)  # too few
    sweep = start(tmp_path, search := load(tmp_path))
    drive(work(sweep, "local-1"))
    record, (lr, gamma) = read_importance(sweep), ("model.lr", "model.gamma")
    assert record["step"] == 10
    assert sum(record["importance"].values()) == pytest.approx(1)
    assert [*record["importance"]] == [lr, gamma]  # the value is the learning rate
    assert len(study.trials(TrialState.COMPLETE)) < 10  # so pruned settings count
    assert f"importance at step 10: {lr} {record['importance'][lr]:.2f}, {gamma} " in summarize(study)[-2]


def test_starting_points_come_first_and_replay_a_grid(work: Open, tmp_path: Path) -> None:
    points = [{"model.lr": lr, "model.gamma": gamma} for lr in (0.001, 0.01) for gamma in (1.0, 10.0)]
    search = load(tmp_path, trials=4, enqueue=points, pruner="none")
    sweep = start(tmp_path, search)
    assert drive(work(sweep, "local-1")) == 8  # each is trained once and measured once
    study = check_accounts(sweep, search, 4)
    assert [t.params for t in study.trials()] == points
    grid = tmp_path / "grid.yaml"
    content = {k: v for k, v in SWEEP.items() if k != "search"}
    grid.write_text(yaml.safe_dump(content | {"grid": {"model.lr": [0.001, 0.01], "model.gamma": [1.0, 10.0]}}))
    identities = {study.runs(t)[0].name.rpartition("-")[2] for t in study.trials()}
    assert identities == {t.identity for t in load_trials(grid, [])}


def test_methods_with_spaces_of_their_own_are_searched_together(work: Open, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"method": "dann", "space": {"model.gamma": {"uniform": [1, 20]}}},
        {"method": "mcd"},
    ]
    space = {"model.lr": SPACE["model.lr"]}
    search = load(tmp_path, {"trials": entries}, space=space, enqueue=[{"method": "mcd", "model.lr": 0.05}])
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"))
    study = check_accounts(sweep, search, 12)
    assert study.trials()[0].params == {"trials": "mcd", "model.lr": 0.05}
    kinds = {tuple(trial.params) for trial in study.trials()}
    assert kinds == {("trials", "model.lr"), ("trials", "model.lr", "dann model.gamma")}
    assert "trials=" in summarize(study)[-1]
    entries[1] |= {"space": {"model.rounds": {"integer": [1, 4]}}}
    changed = load(tmp_path, {"trials": entries}, space=space)
    with pytest.raises(ConfigError, match=r"trials: mcd: model.rounds: .*has begun with nothing"):
        begin(sweep, changed)


def test_a_small_space_is_used_up_without_repeating_a_setting(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path, sampler="random", space={"model.net": {"choice": ["slim", "lenet"]}}, pruner="none")
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"))
    assert len(check_accounts(sweep, search, 2).trials()) == 2


def test_one_slot_asks_for_the_same_settings_every_time(work: Open, tmp_path: Path) -> None:
    searches = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        search = load(tmp_path / name, pruner="none")
        sweep = start(tmp_path / name, search)
        drive(work(sweep, "local-1"))
        searches.append([t.params for t in Study(sweep, search).trials()])
    assert searches[0] == searches[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"space": SPACE | {"model.lr": {"loguniform": [1e-4, 0.2]}}},
            r"search.space.model.lr: .* has begun with .*0\.1",
        ),
        ({"metric": "validation/information/target"}, r"search.metric: validation/information/target: .*begun"),
        ({"direction": "minimize"}, r"search.direction: minimize: .* begun with maximize"),
        ({"pruner": "none"}, r"search.pruner: .*begun"),
    ],
)
def test_a_started_study_keeps_its_search_space(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sweep = start(tmp_path, load(tmp_path))
    with pytest.raises(ConfigError, match=message):
        begin(sweep, load(tmp_path, **change))


def test_other_fixed_settings_need_another_study(tmp_path: Path) -> None:
    search = load(tmp_path)
    sweep = start(tmp_path, search)
    settings = search.settings | {"train.steps": replace(search.settings["train.steps"], value=200)}
    with pytest.raises(ConfigError, match="settings that are not searched"):
        begin(sweep, replace(search, settings=settings))


def test_a_damaged_journal_is_named(work: Open, tmp_path: Path) -> None:
    search = load(tmp_path)
    sweep = start(tmp_path, search)
    drive(work(sweep, "local-1"), 5)
    lines = (sweep / JOURNAL).read_text().splitlines(keepends=True)
    (sweep / JOURNAL).write_text("".join([*lines[:4], lines[4][:9] + "\n", *lines[5:]]))
    with pytest.raises(ConfigError, match=r"study.log: is damaged: .*move it and search.json away"):
        Study(sweep, search)


def test_without_optuna_a_search_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path)
    monkeypatch.setitem(sys.modules, "jobs.search.submit", None)
    words = [str(tmp_path / "s.yaml"), "--cluster", "local", "--runs", str(tmp_path / "logs")]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    assert main(words) == 2
    for number, handler in handlers.items():
        signal.signal(number, handler)
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -e '.[search]'" in line
    assert not (tmp_path / "logs").exists()


def wait_for(look: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not look():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_search_on_this_machine_survives_kill_9_of_its_command(tmp_path: Path, data_root: str) -> None:
    """Killed while it trains and submitted again, every setting is accounted for; the best one is evaluated."""
    file, runs = tmp_path / "tiny.yaml", tmp_path / "logs"
    search = SWEEP["search"] | {"trials": 4, "pruner": {"name": "asha", "first": 5, "factor": 2}}
    train = {"steps": 20, "batch_size": 8, "checkpoint_every": 3}
    content = {"name": "tiny", "train": train, "eval": {"metrics": ["accuracy"]}, "search": search}
    file.write_text(yaml.safe_dump(SWEEP | content))
    command = [sys.executable, "jobs/submit.py", str(file), "--cluster", "local", "--runs", str(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root, "COLUMNS": "300"}
    first = warm.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sweep = runs / "tiny"
    wait_for(lambda: any(read_objectives(run, METRIC) for run in find_runs(sweep)), first)
    (worker,) = psutil.Process(first.pid).children()
    for pid in (first.pid, worker.pid):
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    again = warm.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr + (sweep / "worker.log").read_text()
    loaded = load_search(file, [])
    assert loaded
    study = check_accounts(sweep, complete(loaded), 4)
    assert "4 settings" in again.stdout
    assert "best validation/accuracy/source" in again.stdout
    assert again.stdout.endswith(f"\n{sweep / 'report' / 'index.html'}\n"), "the answer in ten lines, then the page"
    assert "accuracy/target" in again.stdout.partition("4 trials")[2]
    evaluated = [run for run in find_runs(sweep) if run.evaluation()]
    best = max(study.trials(TrialState.COMPLETE), key=lambda trial: trial.value or 0)
    assert evaluated == study.runs(best)  # the test split is read for the chosen setting alone
    assert read_direction(evaluated[0]) == "maximize"
    assert "pruned" in (sweep / "report" / "results.csv").read_text()
