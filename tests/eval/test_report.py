"""The report of a sweep: its numbers, live and hostile run directories, and the page in a real browser."""

import base64
import csv
import fcntl
import io
import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from eval import report
from eval.reporting import answer_figure, curves, formatting, page, results, tables
from tests import warm
from trainer.config.schema import compute_identity, hash_identity, select_identity
from trainer.runs.directory import RunDirectory
from trainer.runs.job_states import write_job_states

ROOT = Path(report.__file__).parents[1]
HOSTILE = """<script>alert('x')</script> & "quoted" | `code` ]]> </style>"""


def trial(sweep: Path, name: str, method: str = "dann", seed: int = 0, **settings: Any) -> Path:
    """Write a finished run directory; `given`: model, data, eval, resources, accuracy, rows, state, error."""
    path = sweep / name
    (path / "eval").mkdir(parents=True)
    config = {
        "name": sweep.name,
        "method": method,
        "model": settings.get("model", {}),
        "data": settings.get("data", {"source": "mnist5k", "target": "mnistm5k"}),
        "train": {"steps": 2000, "batch_size": 64, "seed": seed},
        "eval": settings.get("eval", {"metrics": ["accuracy"]}),
        "resources": settings.get("resources", {"nodes": 1}),
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = settings.get(
        "rows", [{"step": s, "time": 1.7e9 + s, "rate": 80.0, "joint/label": 1 / s} for s in (10, 20, 30)]
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = settings.get("state", "done")
    if state == "done":
        (path / "done").write_text("{}")
    elif state == "running":
        status = {"state": "running", "step": 500, "steps": 2000, "eta": 90.0, "time": time.time(), "host": "elsewhere"}
        (path / "status.json").write_text(json.dumps(status))
    elif state == "failed":
        (path / "failed.1.json").write_text(json.dumps({"error": settings["error"], "attempt": "1", "time": 0}))
    if "accuracy" in settings:
        evaluate(path, {"accuracy/target": settings["accuracy"]})
    return path


def evaluate(path: Path, metrics: dict[str, float], **more: Any) -> None:
    """Write eval/metrics.json."""
    evaluation = {"step": 2000, "metrics": metrics, "intervals": {}, "history": [], "provenance": {}, **more}
    (path / "eval" / "metrics.json").write_text(json.dumps(evaluation))


def draw(settings: Sequence[tuple[curves.Style, Sequence[curves.Curve]]]) -> str:
    """Return the SVG of a plot."""
    template = page.create_environment().get_template("plot.svg.jinja")
    return str(template.make_module().draw(curves.draw_plot(settings), 317, 194))  # type: ignore[attr-defined]


def table(sweep: Path) -> list[dict[str, str]]:
    """The rows of results.csv."""
    return list(csv.DictReader(io.StringIO((sweep / "report" / "results.csv").read_text())))


class Page(HTMLParser):
    """Parse index.html: tags with attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.skipped = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.skipped = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.skipped = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.skipped else data

    def addresses(self) -> list[str]:
        """Every attribute that names something to load or to go to."""
        return [v for _, attrs in self.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href") and v]


@pytest.fixture(autouse=True)
def only_the_figure_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no PDF and PNG, which take most of the time of a report; tests/eval/test_answer.py draws them."""
    monkeypatch.setattr(answer_figure, "UNDATED", {"svg": answer_figure.UNDATED["svg"]})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A small sweep: dann over gamma and seeds, source_only over seeds, one failed, one running."""
    folder = tmp_path / "logs" / "digits"
    for seed, low, high, base in ((0, 0.7, 0.8, 0.5), (1, 0.71, 0.85, 0.55), (2, 0.75, 0.84, 0.6)):
        common = {"lr": 0.01, "lambda": 1.0}
        trial(folder, f"dann,gamma=1,seed={seed}", seed=seed, model={**common, "gamma": 1}, accuracy=low)
        trial(folder, f"dann,gamma=10,seed={seed}", seed=seed, model={**common, "gamma": 10}, accuracy=high)
        trial(folder, f"source_only,seed={seed}", "source_only", seed, model={"lr": 0.01}, accuracy=base)
    model = {"lr": 0.01, "lambda": 1.0, "gamma": 1}
    trial(folder, "dann,gamma=1,seed=3", seed=3, model=model, state="failed", error=HOSTILE)
    trial(folder, "dann,gamma=1,seed=4", seed=4, model=model, state="running", accuracy=0.1)
    (folder / "sweep.yaml").write_text("# Does gamma matter?\n# Paper: DANN\nname: digits\n# not this\n")
    return folder


def test_costs_are_columns_where_they_were_measured(sweep: Path) -> None:
    assert "device_hours" not in tables.format_csv(results.read_sweep(sweep))
    seconds = {"startup": 3.0, "data": 1.0, "updates": 8.0, "checkpoints": 0.5, "logging": 0.25, "other": 0.25}
    costs = {"attempts": 2, "steps": 50, "device_hours": 0.0125, "seconds": seconds, "memory_gib": 0.5}
    (sweep / "dann,gamma=1,seed=0" / "status.json").write_text(json.dumps({"costs": costs}))
    text = tables.format_csv(results.read_sweep(sweep))
    rows = {row["trial"]: row for row in csv.DictReader(io.StringIO(text))}
    measured, other = rows["dann,gamma=1,seed=0"], rows["dann,gamma=1,seed=1"]
    assert (measured["device_hours"], measured["steps_per_second"], measured["updates_share"]) == (
        "0.0125",
        "5.0",
        "0.8",
    )
    assert (other["device_hours"], other["accuracy/target"]) == ("", "0.71")


def test_csv_has_the_documented_columns_and_full_precision(sweep: Path) -> None:
    evaluate(sweep / "dann,gamma=1,seed=0", {"accuracy/target": 0.1 + 0.2, "fid": 12.0})
    report.write_report(sweep)
    rows = table(sweep)
    expected = ["trial", "state", "method", "seeds", "model.gamma", "train.seed", "accuracy/target", "fid", "error"]
    assert list(rows[0]) == expected
    by_name = {row["trial"]: row for row in rows}
    assert len(rows) == len(by_name) == 11
    assert by_name["dann,gamma=1,seed=0"]["accuracy/target"] == "0.30000000000000004"
    assert by_name["dann,gamma=10,seed=2"] | {"fid": ""} == {
        **dict.fromkeys(expected, ""),
        "trial": "dann,gamma=10,seed=2",
        "state": "done",
        "method": "dann",
        "seeds": "3",
        "model.gamma": "10",
        "train.seed": "2",
        "accuracy/target": "0.84",
    }
    assert by_name["source_only,seed=0"]["model.gamma"] == ""
    assert by_name["dann,gamma=1,seed=3"]["state"] == "failed"
    assert by_name["dann,gamma=1,seed=3"]["error"] == HOSTILE
    assert by_name["dann,gamma=1,seed=4"]["state"] == "running"


def test_swept_keys_exclude_those_determined_by_the_method(tmp_path: Path) -> None:
    def swept(*configs: dict[str, Any]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for index, config in enumerate(configs):
            trial(folder, str(index), **config)
        return results.read_sweep(folder).swept

    assert swept({}, {}) == []
    # Resources and evaluation never make a setting, however they differ.
    assert swept({"eval": {"metrics": []}, "resources": {"nodes": 2}}, {}) == []
    only_dann = {"method": "dann", "model": {"lambda": 1}}
    assert swept(only_dann, {"method": "source_only"}) == []
    assert swept(only_dann, {"method": "dann", "model": {"lambda": 2}}, {"method": "source_only"}) == ["model.lambda"]
    # Present in some trials of one method, and different where every method has it: both are swept.
    assert swept(only_dann, {"method": "dann"}) == ["model.lambda"]
    assert swept({"method": "a", "model": {"lr": 0.1}}, {"method": "b", "model": {"lr": 0.2}}) == ["model.lr"]
    assert swept({"data": {"dataset": "digits"}}, {"data": {"source": "mnist", "target": "usps"}}, {"seed": 1}) == [
        "data.dataset",
        "data.source",
        "data.target",
        "train.seed",
    ]


def test_mean_and_deviation_are_over_finished_seeds(sweep: Path) -> None:
    low, high = [0.7, 0.71, 0.75], [0.8, 0.85, 0.84]
    settings = {setting.label: setting for setting in results.read_sweep(sweep).settings}
    assert list(settings) == ["dann · gamma 1", "dann · gamma 10", "source_only"]
    for label, values in {"dann · gamma 1": low, "dann · gamma 10": high}.items():
        mean, std, n, *_ = settings[label].summarize("accuracy/target") or (0, 0, 0)
        assert (mean, std, n) == (pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)), 3)
    report.write_report(sweep)
    text = (sweep / "report" / "results.md").read_text()
    # By hand: deviations −.02, −.01, .03; √(.0014 / 2) = .02646, to the decimals of the mean.
    assert "| dann        | 1           | 3   | 0.7200 ± 0.0265 |" in text
    assert "| source_only |             | 3   | 0.5500 ± 0.0500 |" in text
    settings_table = [line for line in text.split("## 95 %")[0].splitlines() if line.startswith("|")]
    assert len({len(line) for line in settings_table}) == 1
    page = Page(sweep / "report" / "index.html").text
    assert "0.7200 ± 0.0265" in page
    assert "3 of 5" in page


def test_one_seed_has_no_deviation_and_is_marked(tmp_path: Path) -> None:
    trial(tmp_path, "alone", accuracy=0.5)
    page = Page(report.write_report(tmp_path))
    text = (tmp_path / "report" / "results.md").read_text()
    assert "| dann   | 1   | 0.5000 (1 seed) |" in text
    assert "## 95 % intervals" not in text, "neither over seeds nor over test images"
    assert text.count("0.5000 (1 seed)") == 3  # in the answer, the table of configurations and the pair of domains
    assert page.text.count("(1 seed)") == 3
    assert [row["seeds"] for row in table(tmp_path)] == ["1"]


def test_intervals_over_seeds_and_over_test_images_are_beside_each_other(sweep: Path) -> None:
    for seed, value in enumerate((0.7, 0.71, 0.75)):
        intervals = {"accuracy/target": [value - 0.02, value + 0.01]}
        evaluate(sweep / f"dann,gamma=1,seed={seed}", {"accuracy/target": value}, intervals=intervals)
    page = Page(report.write_report(sweep)).text
    text = (sweep / "report" / "results.md").read_text().partition("## 95 % intervals")[2].partition("##")[0]
    # By hand: .72 ± 4.3027 · .026458 / √3, the 97.5 % quantile of Student's t with two degrees of freedom.
    assert re.search(r"\| dann · gamma 1 +\| training seeds \| \\\[0\.6543, 0\.7857\\\]", text)
    assert re.search(r"\| dann · gamma 1 +\| test images +\| \\\[0\.7000, 0\.7300\\\]", text)
    assert text.count("test images ") == 1, "the other settings have no interval over test images"
    assert "seeds [0.6543, 0.7857]" in page
    assert "images [0.7000, 0.7300]" in page
    assert {row["trial"]: row["seeds"] for row in table(sweep)}["dann,gamma=1,seed=4"] == "3"


def test_finished_trials_that_only_make_figures_count(tmp_path: Path) -> None:
    for gamma, (name, metrics) in enumerate({"figures": ["tsne"], "nothing": [], "waiting": ["tsne"]}.items()):
        trial(tmp_path, name, model={"gamma": gamma}, eval={"metrics": metrics})
    evaluate(tmp_path / "figures", {})
    trial(tmp_path, "trains", model={"gamma": 9}, eval={"metrics": []}, state="running")
    settings = results.read_sweep(tmp_path).settings
    assert {setting.trials[0].name: setting.n for setting in settings} == {
        "figures": 1,
        "nothing": 1,
        "waiting": 0,
        "trains": 0,
    }
    page = Page(report.write_report(tmp_path)).text
    assert page.count("of 1") == 2


def test_the_accuracy_of_the_classifier_that_judges_samples_is_stated(sweep: Path) -> None:
    judged = {"set": "mnistm5k", "test accuracy": 0.97531}
    for seed in (0, 1):
        path = sweep / f"dann,gamma=1,seed={seed}"
        evaluate(path, {"fid_classifier": 9.0}, provenance={"fid_classifier": judged})
    page = Page(report.write_report(sweep)).text
    sentence = "fid_classifier: the classifier's own accuracy is 0.9753 on test images of mnistm5k"
    assert f"{sentence}." in page
    assert f"{sentence}." in (sweep / "report" / "results.md").read_text()
    judged["test accuracy"] = 0.9
    evaluate(sweep / "dann,gamma=1,seed=1", {"fid_classifier": 9.0}, provenance={"fid_classifier": judged})
    report.write_report(sweep)
    assert "compare values of one classifier only." in (sweep / "report" / "results.md").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.12345, "0.1235"), (0.5, "0.5000"), (0.99999, "1.000"), (12.3456, "12.35"), (123456.0, "123500")],
        *[(0.0, "0"), (-0.00012345, "-0.0001234"), (3.14159e-9, "3.142e-09"), (1e9, "1.000e+09"), (7, "7")],
        *[(float("nan"), "nan"), (float("inf"), "inf")],
    ],
)
def test_numbers_have_four_significant_digits(value: float, text: str) -> None:
    assert formatting.format_number(value) == text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        *[(0.72, 0.026458, "0.0265"), (0.72, 1e-9, "0.0000"), (123.456, 7.891, "7.9"), (123456.0, 12.3, "12")],
        *[(0.0, 0.026458, "0.02646"), (3.1e-9, 1.234e-10, "1.234e-10"), (float("nan"), float("nan"), "nan")],
        *[(9.9996, 0.5, "0.50"), (-0.72, 0.05, "0.0500"), (0.72, float("inf"), "inf")],
    ],
)
def test_a_deviation_has_the_decimals_of_its_mean(mean: float, std: float, text: str) -> None:
    assert formatting.format_deviation(mean, std) == text


def test_html_in_texts_is_escaped(tmp_path: Path) -> None:
    name = """<img src=x onerror=alert(1)>&"'#?%41 [a](b)|"""
    path = trial(tmp_path / "a & <b>", name, "<b>method</b>", state="failed", error=HOSTILE, model={"<i>": "</td>"})
    trial(tmp_path / "a & <b>", "other", "<b>method</b>", model={"<i>": "x"}, rows=[{"step": 1, "<svg onload=1>": 1.0}])
    evaluate(path, {"<u>oracle</u>": 1.0}, provenance={"<s>": HOSTILE})
    page = Page(report.write_report(tmp_path / "a & <b>"))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"b", "img", "u", "s"} & set(tags)
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)
    assert name in page.text
    assert page.text.count(HOSTILE) == 2
    assert "<svg onload=1>" in page.text
    # Links of such a name lead to the files they mean.
    linked = {(tmp_path / "a & <b>" / "report" / unquote(a)).resolve() for a in page.addresses() if a.startswith("../")}
    assert {path, path / "config.yaml", path / "failed.1.json"} <= linked
    markdown = (tmp_path / "a & <b>" / "report" / "results.md").read_text()
    assert "<" not in markdown
    assert [line.count(" | ") for line in markdown.splitlines() if line.startswith("| ") and "alert('x')" in line] == [
        2
    ]


def test_the_page_requests_nothing_and_shows_no_path_of_this_machine(sweep: Path) -> None:
    failed = sweep / "dann,gamma=1,seed=3" / "failed.1.json"
    failed.write_text(json.dumps({"error": f"cannot open {sweep}/dann,gamma=1,seed=3/latest"}))
    page = Page(report.write_report(sweep))
    for address in page.addresses():
        assert address.startswith(("data:", "#")) or not re.match(r"[a-z]+:|/", address), address
        if address.startswith("../"):
            assert (sweep / "report" / unquote(address)).exists(), address
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    for file in (path for path in (sweep / "report").rglob("*") if path.is_file()):
        assert str(sweep.parent).encode() not in file.read_bytes()
    assert "cannot open dann,gamma=1,seed=3/latest" in page.text
    assert "tensorboard --logdir" in page.text
    assert "Does gamma matter? Paper: DANN" in page.text
    assert "not this" not in page.text


def test_the_report_is_written_with_missing_or_damaged_files(sweep: Path) -> None:
    for name, content in {
        "metrics.jsonl": '{"step": 10, "joint/label": 0.5}\n{"step": 20, "joi',
        "status.json": '{"state": "run',
        "eval/metrics.json": '{"step": 2000, "metr',
        "eval/tsne.png": "\x89PNG",
        "failed.1.json": "",
        "config.yaml": "name: digits\nmethod: [da",
    }.items():
        path = trial(sweep, f"torn {name.replace('/', ' ')}")
        (path / "done").unlink()
        (path / name).write_text(content)
    odd = trial(sweep, "odd")
    (odd / "config.yaml").write_text("half")
    (odd / "metrics.jsonl").write_bytes(b'{"step": 1, "\xff": 2}\n')
    (sweep / "bare").mkdir()
    (sweep / "bare" / "config.yaml").write_text("")
    (sweep / "no trial").mkdir()
    (sweep / "sweep.yaml").unlink()
    (sweep / "submissions.jsonl").write_text('{"arr')
    report.write_report(sweep)
    assert len(table(sweep)) == 11 + 6 + 2
    torn = next(t for t in results.read_sweep(sweep).trials if t.name == "torn metrics.jsonl")
    assert [values.tolist() for values in torn.curves["joint/label"]] == [[10.0], [0.5]]
    names = {path.name for path in (sweep / "report").iterdir()}
    assert names == {"index.html", "results.csv", "results_long.csv", "results.md", "figures"}


def test_two_reports_differ_only_in_their_time(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with PDF and PNG

    def written() -> dict[str, bytes]:
        files = [path for path in (sweep / "report").rglob("*") if path.is_file()]
        return {path.name: re.sub(rb"<time.*?</time>", b"", path.read_bytes()) for path in files}

    report.write_report(sweep)
    first = written()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "eval" / "report.py"), str(sweep)]
    done = warm.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.endswith(f"\n{sweep / 'report' / 'index.html'}\n")
    assert written() == first


def test_failed_trials_show_their_reason_and_logs(sweep: Path) -> None:
    names = ["dann,gamma=1,seed=2", "dann,gamma=1,seed=3"]
    record = {
        "arrays": [{"stage": "train", "id": "41", "trials": names}, {"stage": "eval", "id": "42", "trials": names[:1]}]
    }
    (sweep / "submissions.jsonl").write_text(json.dumps({"cluster": "local"}) + "\n" + json.dumps(record) + "\n")
    log = sweep / "slurm" / "41_1" / "41_1_0_log.err"
    log.parent.mkdir(parents=True)
    log.touch()
    (sweep / names[1] / "train.log").touch()
    # Trained, but its evaluation failed: that is no state of the trial, yet nobody should have to look for it.
    (sweep / names[0] / "eval" / "failed.json").write_text(json.dumps({"error": "no predict()"}))
    page = Page(report.write_report(sweep))
    assert {"../slurm/41_1/41_1_0_log.err", f"../{names[1].replace(',', '%2C').replace('=', '%3D')}/train.log"} <= set(
        page.addresses()
    )
    assert "evaluation: no predict()" in page.text
    assert {row["trial"]: row["error"] for row in table(sweep)}[names[0]] == "evaluation: no predict()"


def test_a_trial_that_exited_without_a_marker_has_the_reason_that_slurm_knows(sweep: Path) -> None:
    path = trial(sweep, "lost", state="running")
    status = json.loads((path / "status.json").read_text()) | {"time": 0, "attempt": "7.1"}
    (path / "status.json").write_text(json.dumps(status))
    write_job_states(sweep, {"lost": ("failed", "preempted; node failure")})
    report.write_report(sweep)
    row = next(row for row in table(sweep) if row["trial"] == "lost")
    assert row["state"] == "failed"
    assert "node failure" in row["error"]
    assert "preempted" in row["error"]


def test_a_cancelled_trial_is_cancelled_in_the_report(sweep: Path) -> None:
    for name, state in (("waiting", "pending"), ("saved", "pending"), ("finished", "done")):
        trial(sweep, name, state=state)
    (sweep / "saved" / "status.json").write_text(json.dumps({"state": "stopped", "step": 7, "time": 1.7e9}))
    write_job_states(sweep, dict.fromkeys(("waiting", "saved", "finished"), ("stopped", "cancelled by me")))
    report.write_report(sweep)
    states = {row["trial"]: row["state"] for row in table(sweep)}
    assert (states["waiting"], states["saved"], states["finished"]) == ("cancelled", "cancelled", "done")


def test_newer_records_of_a_trial_override_what_slurm_knew(sweep: Path) -> None:
    write_job_states(sweep, dict.fromkeys(("again", "crashed", "finished", "odd"), ("failed", "node failure")))
    path = trial(sweep, "again", state="running")
    status = json.loads((path / "status.json").read_text()) | {"time": time.time() + 1}
    (path / "status.json").write_text(json.dumps(status))
    path = trial(sweep, "crashed", state="failed", error="loss is nan")
    (path / "failed.1.json").write_text(json.dumps({"error": "loss is nan", "time": time.time() + 1}))
    trial(sweep, "finished", state="done")
    path = trial(sweep, "odd", state="failed", error="out of disk")
    record = json.loads((sweep / "jobs.json").read_text())
    record["odd"]["time"] = "yesterday"
    (sweep / "jobs.json").write_text(json.dumps(record))
    report.write_report(sweep)
    rows = {row["trial"]: (row["state"], row["error"]) for row in table(sweep)}
    assert rows["again"] == ("running", "")
    assert rows["crashed"] == ("failed", "loss is nan")
    assert rows["finished"] == ("done", "")
    assert rows["odd"] == ("failed", "out of disk")


def test_costs_are_a_section_with_sums_of_hours_and_peaks_of_memory(sweep: Path) -> None:
    for seed, memory in ((0, 0.5), (1, 0.75)):
        seconds = {"startup": 3.0, "data": 1.0, "updates": 8.0, "checkpoints": 0.5, "logging": 0.25, "other": 0.25}
        costs = {"attempts": 2, "steps": 50, "device_hours": 0.0125, "seconds": seconds, "memory_gib": memory}
        (sweep / f"dann,gamma=1,seed={seed}" / "status.json").write_text(json.dumps({"costs": costs}))
    setting = next(s for s in results.read_sweep(sweep).settings if s.costs)
    assert {name: setting.costs[name] for name in ("device_hours", "attempts", "steps_per_second", "memory_gib")} == {
        "device_hours": 0.025,
        "attempts": 4,
        "steps_per_second": 5.0,
        "memory_gib": 0.75,
    }
    text = report.write_report(sweep).read_text()
    assert (
        "All trainings together: 0.02500 device-hours in 4 attempts, 6 s of start-up."
        in Page(sweep / "report" / "index.html").text
    )
    assert 'title="updates 80 %"' in text


def test_several_sweeps_are_compared_on_one_page(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "logs" / "wider"
    for seed, accuracy in enumerate((0.9, 0.95, 0.94)):  # each 0.1 above the same seed of digits
        model = {"lr": 0.01, "lambda": 1.0, "gamma": 10}
        trial(other, f"dann,gamma=10,seed={seed}", seed=seed, model=model, accuracy=accuracy)
    assert report.main([str(sweep), str(other)]) == 2
    assert "--out" in capsys.readouterr().err
    assert report.main([str(sweep), str(other), "--out", str(tmp_path / "both")]) == 0
    text = capsys.readouterr().out
    assert "sweep wider" in text
    assert "+0.1000 [0.1000, 0.1000] paired over 3 seeds, more than the noise" in " ".join(text.split())
    assert not (sweep / "report").exists()
    page = Page(tmp_path / "both" / "index.html")
    for address in [a for a in page.addresses() if a.startswith("../")]:
        assert (tmp_path / "both" / unquote(address)).exists(), address
    assert {row["sweep"] for row in csv.DictReader((tmp_path / "both" / "results.csv").read_text().splitlines())} == {
        "digits",
        "wider",
    }


def test_oracle_metrics_are_marked_and_intervals_shown(sweep: Path) -> None:
    metrics = {"accuracy/target": 0.7, "oracle/accuracy/target": 0.9}
    evaluate(sweep / "dann,gamma=1,seed=0", metrics, intervals={"accuracy/target": [0.65, 0.74999]})
    page = Page(report.write_report(sweep))
    assert "[0.6500, 0.7500]" in page.text
    marks = [a for tag, a in page.tags if tag == "abbr" and a.get("class") == "oracle"]
    assert len(marks) == 2  # in the table of settings and in that of trials
    assert all("target labels" in (mark["title"] or "") for mark in marks)
    assert "oracle/accuracy/target †" in (sweep / "report" / "results.md").read_text()
    assert "oracle/accuracy/target" in table(sweep)[0]


def test_methods_tuned_with_target_labels_in_sight_are_marked_in_every_table(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval": {"metrics": ["accuracy"], "tuned": ["dann"]}, "accuracy": 0.9}
    for method in ("source_only", "dann"):
        trial(tmp_path / "tuned", f"{method}-{'0' * 8}", method, **settings)
    report.write_report(tmp_path / "tuned")
    folder = tmp_path / "tuned" / "report"
    assert {row["method"]: row["tuned"] for row in table(folder.parent)} == {"dann": "true", "source_only": "false"}
    markdown = (folder / "results.md").read_text()
    rows = [line for line in markdown.splitlines() if re.search(r"\| dann\b", line)]
    assert len(rows) == 3  # configurations, trials and the pair of domains
    assert all("dann ‡" in row for row in rows)
    assert "source_only ‡" not in markdown
    assert "‡ tuned: settings chosen with target labels in sight." in markdown
    text = (folder / "index.html").read_text()
    assert text.count("‡ Tuned: settings chosen with target labels in sight.") == 3
    assert len(re.findall(r'dann <abbr class="oracle" title="tuned: [^"]*">‡</abbr>', text)) == 2
    assert "<td>dann ‡</td>" in text


def test_trials_of_a_network_that_was_corrected_since_are_not_averaged_with_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "gan"
    for seed in (0, 1):
        path = trial(folder, "new", "gta", seed, accuracy=0.9)
        path.rename(folder / f"gta,seed={seed}-{compute_identity(RunDirectory(path).config())}")
    path = trial(folder, "old", "gta", 0, accuracy=0.1)
    content = select_identity(RunDirectory(path).config())
    del content["revision"]
    path.rename(folder / f"gta,seed=0-{hash_identity(content)}")
    new, old = results.read_sweep(folder).settings
    assert [(setting.n, setting.label) for setting in (new, old)] == [
        (2, "gta"),
        (1, "gta · revision before the correction of the network"),
    ]


def test_progress_is_shown_until_all_is_done(sweep: Path) -> None:
    page = Page(report.write_report(sweep))
    bar = next(a for tag, a in page.tags if tag == "progress")
    assert (bar["value"], bar["max"]) == (str(9 * 2000 + 500), str(11 * 2000))
    for name in ("dann,gamma=1,seed=3", "dann,gamma=1,seed=4"):
        (sweep / name / "done").write_text("{}")
    assert "progress" not in [tag for tag, _ in Page(report.write_report(sweep)).tags]


def test_a_band_is_mean_and_range_over_the_seeds_that_reached_a_step() -> None:
    long = np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 3.0])
    short = np.array([0.0, 10.0]), np.array([3.0, 6.0])
    steps, mean, low, high = curves.summarize_seeds([long, short])
    assert steps.tolist() == [0, 10, 20]
    assert mean.tolist() == [2, 4, 3]
    assert low.tolist() == [1, 2, 3]
    assert high.tolist() == [3, 6, 3]


def test_long_curves_are_averaged_into_bins() -> None:
    steps = np.arange(100_000.0)
    grid, mean, low, high = curves.summarize_seeds(
        [(steps, np.tile([0.0, 1.0], 50_000)), (steps, np.full(100_000, 0.5))]
    )
    assert len(grid) == curves.BINS
    assert grid[0] < 1000
    assert grid[-1] > 99_000
    np.testing.assert_allclose(mean, 0.5, atol=0.01)
    assert (low <= mean).all()
    assert (mean <= high).all()


def test_curves_leave_out_values_that_are_not_finite_numbers() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 2, "a": 2.0},
        {"step": 1, "a": float("nan"), "b": "text", "c": True},
        {"step": 1, "a": 1},
        {"a": 5},
    ]
    rows += [{"step": 3, "a": float("inf"), "time": 1.0, "rate": 2.0}]
    series = curves.read_curves(rows)
    assert list(series) == ["a"]
    assert [values.tolist() for values in series["a"]] == [[1, 2], [1, 2]]


def test_a_setting_has_one_colour_in_all_figures(sweep: Path) -> None:
    rows = [{"step": s, "joint/label": 2e-4 * s, "joint/domain": 1.0 / s} for s in (1, 2, 3)]
    trial(sweep, "more", model={"lr": 0.01, "lambda": 1.0, "gamma": 10}, seed=9, rows=rows)
    evaluate(sweep / "more", {}, history=[{"step": s, "metrics": {"accuracy/target": 0.3}} for s in (500, 1000)])
    evaluate(sweep / "source_only,seed=0", {}, history=[{"step": 500, "metrics": {"other": 0.3}}])  # one step: no curve
    text = report.write_report(sweep).read_text()
    figures = re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", text, flags=re.S)
    assert [name.partition(" ")[0] for name, _ in figures] == ["accuracy/target", "joint/domain", "joint/label"]
    legend = dict(re.findall(r'data-entry="(e\d+)">.*?stroke="(#\w+)"', text))
    assert len(set(legend.values())) == len(legend) == 3
    for _, figure in figures:
        drawn = re.findall(r'<g class="curve (e\d+)".*? stroke="(#\w+)"', figure, flags=re.S)
        assert drawn
        assert {legend[entry] for entry, _ in drawn} == {colour for _, colour in drawn}
    identifiers = re.findall(r' id="(.*?)"', text)
    assert len(identifiers) == len(set(identifiers))


def test_ticks_keep_their_digits_and_the_axis_is_linear() -> None:
    (style,) = curves.choose_styles(["dann"])
    svg = draw([(style, [(np.arange(3.0), np.array([0.0, 2e-4, 6e-4]))])])
    ticks = re.findall(r">([0-9.]+)</text>", svg)
    assert {"0.0000", "0.0002", "0.0004", "0.0006"} <= set(ticks)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (1.0, 1 + 1e-15),
        (1e-300, 3e-300),
        (-1e99, 1e99),
        (5e6, 2e7),
        (-0.1, 0.3),
        (1e6, 1e6 + 1),
    ],
)
def test_any_range_of_values_has_distinct_ticks_inside_the_axes(values: tuple[float, float]) -> None:
    (style,) = curves.choose_styles(["dann"])
    plot = curves.draw_plot([(style, [(np.array([1.0, 2.0]), np.array(values))])])
    for axis in (plot.x, plot.y):
        positions, labels = zip(*axis.ticks(), strict=True)
        assert len(set(labels)) == len(labels) >= 2
        assert min(axis.start, axis.end) <= min(positions) < max(positions) <= max(axis.start, axis.end)
        assert not {label for label in labels if float(label) == 0 and label.startswith("-")}


def test_hundreds_of_settings_share_the_colour_of_their_method() -> None:
    styles = curves.choose_styles(["dann"] * 200 + ["gta"] * 100)
    assert len(set(styles)) == 2
    steps = np.arange(200.0)
    svg = draw([(style, [(steps, np.sin(steps + i))]) for i, style in enumerate(styles)])
    assert re.findall(r'class="curve (e\d)".*? stroke="(#\w+)"', svg) == [
        ("e0", styles[0].colour),
        ("e1", styles[-1].colour),
    ]
    assert svg.count('d="M') == 300 + 2  # a thin line per setting, the grid and the axes
    assert "<text" in svg
    assert len(svg) < 350_000


def test_pictures_of_the_lowest_seed_are_embedded_the_others_linked(sweep: Path) -> None:
    for seed in (2, 1):
        Image.new("RGB", (2400, 300), (seed, 0, 0)).save(sweep / f"source_only,seed={seed}" / "eval" / "tsne.png")
    Image.new("P", (40, 30)).save(sweep / "dann,gamma=1,seed=0" / "eval" / "tsne.png")
    (sweep / "dann,gamma=10,seed=0" / "eval" / "tsne.png").write_bytes(b"\x89PNG\r\n half")
    page = Page(report.write_report(sweep))
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    sources = [source for source in sources if source.startswith("data:image/png")]  # not the figure of the answer
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB") for uri in sources]
    assert [picture.size for picture in pictures] == [(40, 30), (1200, 150)]
    assert pictures[1].getpixel((0, 0)) == (1, 0, 0)
    linked = [unquote(a) for a in page.addresses() if a.endswith("tsne.png")]
    assert sorted(linked) == [
        "../dann,gamma=1,seed=0/eval/tsne.png",
        "../dann,gamma=10,seed=0/eval/tsne.png",
        "../source_only,seed=1/eval/tsne.png",
        "../source_only,seed=2/eval/tsne.png",
    ]


def test_a_folder_without_trials_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert report.main([str(folder)]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {folder}: no trial")
        assert "logs/<sweep>" in message
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial(tmp_path, "a")
    (tmp_path / "report").write_text("in the way")
    assert report.main([str(tmp_path)]) == 1
    assert "cannot write the report" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        report.main(["--help"])
    assert end.value.code == 0
    assert "python eval/report.py logs/dann" in capsys.readouterr().out


class Browser:
    """Headless Chromium, driven through the two pipes of its DevTools protocol: no port, no waiting for luck."""

    LIMIT = 60.0  # seconds for any one answer

    def __init__(self, program: str, profile: Path) -> None:
        (read_command, self.write), (self.read, write_answer) = os.pipe(), os.pipe()
        # Chromium wants its pipes at 3 and 4; above 9 they are out of the way of each other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_command, write_answer)]
        code = "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4); os.execvp(a[3], a[3:])"
        switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        switches += " --disable-component-update --disable-sync --disable-breakpad --remote-debugging-pipe"
        command = [
            sys.executable,
            "-c",
            code,
            *map(str, ends),
            program,
            *switches.split(),
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL, start_new_session=True)
        for end in (read_command, write_answer, *ends):
            os.close(end)
        self.buffer, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Take an empty page and listen to all that happens in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; AssertionError with Chromium's words if it refuses."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def receive(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], self.LIMIT)[0], "Chromium does not answer"
            data = os.read(self.read, 1 << 20)
            assert data, "Chromium has ended"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path, fragment: str = "") -> None:
        """Go to a page and wait until everything of it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri() + fragment)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key of the keyboard."""
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39}.get(key, 0)
        down = {"type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", **down)
        self.call("Input.dispatchKeyEvent", **{**down, "type": "keyUp"})

    def close(self) -> None:
        """End it: closing its pipe tells it to leave; whatever then is left of its processes is killed."""
        os.close(self.write)
        os.close(self.read)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.LIMIT)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        assert "CI" not in os.environ, "Chromium is not installed: apt-get install chromium"
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    browser = Browser(program, tmp_path / "profile")
    try:
        browser.attach()
        yield browser
    finally:
        browser.close()


def test_in_a_browser_the_tables_sort_and_filter_and_nothing_is_requested(sweep: Path, browser: Browser) -> None:
    trial(sweep, "dann,gamma=9,seed=0", model={"lr": 0.01, "lambda": 1.0, "gamma": 9}, accuracy=0.0001234)
    Image.new("RGB", (40, 30)).save(sweep / "source_only,seed=0" / "eval" / "tsne.png")
    pictures = np.zeros((2, 30, 40, 3), np.uint8)
    np.savez(sweep / "source_only,seed=0" / "eval" / "tsne_by_step.npz", steps=[5, 9], pictures=pictures)
    browser.open(report.write_report(sweep))

    def column(number: int) -> list[str]:
        cells = f"#trials-table tbody tr:not([hidden]) > :nth-child({number})"
        rows: list[str] = browser.value(
            f"Array.from(document.querySelectorAll('{cells}'), c => c.dataset.value ?? c.innerText)"
        )
        return rows

    def head(number: int) -> str:
        return f"document.querySelector('#trials-table thead th:nth-child({number})')"

    gammas = ["1"] * 5 + ["9"] + ["10"] * 3 + [""] * 3
    assert column(4) == gammas  # as written: by method, then by number
    # With the keyboard: the button has the focus, Enter sorts; absent values stay last both ways.
    browser.value(f"{head(4)}.querySelector('button').focus()")
    assert browser.value(f"{head(4)}.ariaSort") is None
    browser.press("Enter", "\r")
    assert browser.value(f"{head(4)}.ariaSort") == "ascending"
    assert column(4) == gammas
    browser.press("Enter", "\r")
    assert browser.value(f"{head(4)}.ariaSort") == "descending"
    assert column(4) == ["10"] * 3 + ["9"] + ["1"] * 5 + [""] * 3
    # With the mouse: another column, and only that one says that it is sorted; small numbers are numbers.
    browser.value(f"{head(6)}.querySelector('button').click()")
    assert browser.value("document.querySelectorAll('#trials-table [aria-sort]').length") == 1
    accuracies = column(6)
    assert accuracies[:2] == ["0.0001234", "0.1"]
    assert accuracies[-1] == ""
    assert [float(a) for a in accuracies[:-1]] == sorted(float(a) for a in accuracies[:-1])
    # Tab goes on to the next column's button.
    browser.value(f"{head(1)}.querySelector('button').focus()")
    browser.press("Tab")
    assert browser.value(f"document.activeElement === {head(2)}.querySelector('button')")

    browser.value("document.querySelector('#trials-table-tools input').focus()")
    browser.call("Input.insertText", text="GAMMA=10 done accuracy>=0.84")
    assert sorted(column(1)) == [f"dann,gamma=10,seed={seed}" for seed in (1, 2)], "words and conditions on columns"
    assert browser.value("document.querySelector('#trials-table-tools [role=status]').textContent") == "2 of 12 trials"

    # The address keeps what was chosen: opened again, the page shows the same.
    box = "document.querySelector('#trials-table-tools [value=\"model.lambda\"]')"
    cell = "getComputedStyle(document.querySelector('#trials-table [data-name=\"model.lambda\"]')).display"
    assert browser.value(cell) == "none", "what the method determines is hidden until it is chosen"
    browser.value(f"{box}.click()")
    for name in ("dann,gamma=1,seed=0", "dann,gamma=9,seed=0", "source_only,seed=0"):  # the oldest of three is dropped
        browser.value(f"document.querySelector('.pick[aria-label=\"compare {name}\"]').click()")
    address = browser.value("location.hash")
    browser.call("Page.navigate", url="about:blank")
    browser.open(sweep / "report" / "index.html", address)
    assert sorted(column(1)) == [f"dann,gamma=10,seed={seed}" for seed in (1, 2)]
    assert browser.value(f"{head(6)}.ariaSort") == "ascending"
    assert browser.value(cell) == "table-cell"
    rows = browser.value(
        "Array.from(document.querySelectorAll('#difference tr'), r => Array.from(r.cells, c => c.innerText))"
    )
    assert rows == [
        ["", "dann,gamma=9,seed=0", "source_only,seed=0", "second − first"],
        ["method", "dann", "source_only", ""],
        ["model.gamma", "9", "", ""],
        ["accuracy/target", "0.0001234", "0.5", "+0.4999"],
        ["model.lambda", "1.0", "", ""],
    ]

    # Values of curves, by the keyboard; the last step is that of the fixture, 1 / 30.
    browser.value("document.querySelector('#curves ~ .figures .plot').focus()")
    browser.press("ArrowRight")
    assert browser.value("document.querySelector('.hover').innerText").startswith("step 30\n0.033")

    # Pictures: the slider moves all of a wall, a click enlarges one, Escape or a click closes it.
    wall = "document.querySelector('.wall')"
    shift = f"getComputedStyle({wall}.querySelector('img')).transform.split(',')[5]"
    height = browser.value(f"{wall}.querySelector('.frame').getBoundingClientRect().height - 2")
    assert -float(browser.value(f"parseFloat({shift})")) == pytest.approx(height, abs=2), "the last one first"
    browser.value(f"(s => {{ s.value = 0; s.dispatchEvent(new Event('input')); }})({wall}.querySelector('input'))")
    assert browser.value(f"parseFloat({shift})") == 0
    assert browser.value(f"{wall}.querySelector('output').textContent") == "step 5"
    browser.value(f"{wall}.querySelector('.frame').click()")
    assert browser.value("document.querySelector('dialog').open")
    browser.press("Escape")
    assert not browser.value("document.querySelector('dialog').open")

    opacity = "Array.from(document.querySelectorAll('#curves ~ .figures .curve'), g => g.classList.contains('on'))"
    assert not any(browser.value(opacity))
    browser.value("document.querySelector('#curves ~ .figures .legend button').click()")
    assert any(browser.value(opacity))
    assert not all(browser.value(opacity))

    assert browser.value("Array.from(document.images, image => image.naturalWidth > 0)") == [True, True, True]
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not browser.value(wide)
    nothing_was_requested_or_logged(browser, sweep)

    # At the width of a phone tables scroll by themselves, the page does not.
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    browser.open(sweep / "report" / "index.html")
    assert browser.value("innerWidth") == 360
    assert not browser.value(wide)
    nothing_was_requested_or_logged(browser, sweep)


def nothing_was_requested_or_logged(browser: Browser, sweep: Path) -> None:
    """Since the page was opened: no message, no error, no dialog, and no request but for the page itself."""
    bad = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    assert [event for event in browser.events if event.get("method") in bad] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    page = (sweep / "report" / "index.html").as_uri()
    assert page in [url.partition("#")[0] for url in asked]
    assert [url for url in asked if url.partition("#")[0] != page and not url.startswith("data:")] == []


def test_in_a_browser_scripts_in_texts_do_not_run(tmp_path: Path, browser: Browser) -> None:
    attack = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    trial(tmp_path / "s", "a", attack, state="failed", error=attack, rows=[{"step": 1, attack: 1.0}])
    (tmp_path / "s" / "sweep.yaml").write_text(f"# {attack}\n")
    path = report.write_report(tmp_path / "s")
    browser.open(path)
    assert browser.value("document.title") == "s – sweep report"
    # The policy holds even if text should slip through: a script that is not ours does not run.
    slipped = tmp_path / "slipped.html"
    slipped.write_text(path.read_text().replace("<main>", f"<main>{attack}"))
    browser.open(slipped)
    assert browser.value("document.title") == "s – sweep report"
    assert "Content Security Policy" in json.dumps([e for e in browser.events if e.get("method") == "Log.entryAdded"])
