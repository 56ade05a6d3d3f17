"""The answer of a sweep, on made-up results whose truth is known: what leads, by how much, and what is only noise."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtr

from eval import report
from eval.intervals import welch_interval
from eval.reporting import answer_figure, parallel_figure, search_figure
from eval.reporting.answer import Answer, Comparison, adjust_means, answer_sweep, compare_seeds
from eval.reporting.columns import describe_rule, is_maximized, order_metrics
from eval.reporting.results import read_sweep
from tests.eval.test_report import Page, evaluate, table, trial
from trainer.runs.directory import RunDirectory
from trainer.runs.objective import write_objective

KEYS = ["model.gamma"]


def sweep_gamma(folder: Path, values: dict[Any, list[float]], **more: Any) -> Path:
    """Write a sweep over gamma: values of accuracy/target by seed; NaN is a missing seed."""
    for gamma, accuracies in values.items():
        method = gamma if isinstance(gamma, str) else "dann"
        model = {} if isinstance(gamma, str) else {"gamma": gamma}
        for seed, accuracy in enumerate(accuracies):
            if accuracy == accuracy:
                trial(folder, f"{method},{gamma},{seed}", method, seed, model=model, accuracy=accuracy, **more)
    return folder


def answer(folder: Path) -> Answer:
    (only,) = answer_sweep(read_sweep(folder))
    return only


def lead_of(best: Answer) -> Comparison:
    """Return the lead of the best setting over the next one."""
    return best.compare(best.ranked[0], best.ranked[1], "accuracy/target")


def validate(folder: Path, values: dict[Any, list[float]]) -> None:
    """Add accuracies on the validation split of the source."""
    for gamma, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            path = folder / f"dann,{gamma},{seed}"
            row = {"validation/accuracy/source": accuracy, "validation/accuracy/target": 1 - accuracy}
            test = {"accuracy/target": 0.5 + gamma / 100}
            evaluate(path, test, history=[{"step": 1000, "metrics": {}}, {"step": 2000, "metrics": row}])


def test_a_clear_winner_leads_by_its_paired_difference(tmp_path: Path) -> None:
    # Seeds differ far more than settings do: only pairing shows that 5 is better than 1 by 0.05 ± 0.002 everywhere.
    low = [0.5, 0.6, 0.7]
    best = answer(sweep_gamma(tmp_path / "s", {1: low, 5: [0.552, 0.65, 0.748], 10: [0.2, 0.3, 0.4]}))
    assert [s.label for s in best.ranked] == ["dann · gamma 5", "dann · gamma 1", "dann · gamma 10"]
    # By hand: differences .052, .05, .048; s = .002; 4.3027 · .002 / √3 = .00497.
    lead = lead_of(best)
    assert (lead.lead, lead.seeds) == (pytest.approx(0.05), 3)
    assert lead.interval == (pytest.approx(0.045032, abs=1e-5), pytest.approx(0.054968, abs=1e-5))
    assert lead.is_clear
    assert best.sentences == [
        "Best by accuracy/target (a choice by the test split and labels of the target): dann · gamma 5, "
        "0.6500 ± 0.0980 (n = 3).",
        "Lead over dann · gamma 1: +0.05000 [0.04503, 0.05497] paired over 3 seeds, more than the noise.",
    ]


def test_equal_settings_are_within_the_noise(tmp_path: Path) -> None:
    # 60 sweeps of three settings with the same truth: the best of them is called clear about as rarely as 5 % says.
    random, clear = np.random.default_rng(0), 0
    for _ in range(60):
        values = [{str(seed): value for seed, value in enumerate(random.normal(0.8, 0.02, 4))} for _ in range(3)]
        first, second, _ = sorted(values, key=lambda v: -sum(v.values()))
        clear += compare_seeds(first, second, True).is_clear
    assert clear <= 6
    equal = answer(sweep_gamma(tmp_path / "s", {1: [0.7, 0.8, 0.9], 5: [0.71, 0.79, 0.9], 10: [0.7, 0.81, 0.88]}))
    assert "within the noise; so is 1 more" in equal.sentences[1]


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_never_a_clear_lead(tmp_path: Path, seeds: int) -> None:
    best = answer(sweep_gamma(tmp_path / "s", {1: [0.1, 0.1][:seeds], 5: [0.9, 0.9][:seeds]}))
    assert best.ranked[0].label == "dann · gamma 5"
    assert not lead_of(best).is_clear
    assert ("one seed says nothing about the noise" if seeds == 1 else "within the noise") in best.sentences[1]


def test_a_missing_seed_neither_favours_nor_harms_a_setting(tmp_path: Path) -> None:
    # Seed 2 is hard for all. 5 lacks it and so has the higher mean, though 1 is better on every seed that both have.
    values = {1: [0.82, 0.83, 0.4], 5: [0.8, 0.81, float("nan")], 10: [0.7, 0.71, 0.28]}
    best = answer(sweep_gamma(tmp_path / "s", values))
    assert [s.label for s in best.ranked] == ["dann · gamma 1", "dann · gamma 5", "dann · gamma 10"]
    lead = lead_of(best)
    assert (lead.lead, lead.seeds) == (pytest.approx(0.02), 2)
    assert adjust_means([{"0": 1.0, "1": 3.0}, {"0": 2.0}]) == pytest.approx([2.0, 3.0], abs=1e-6)


def test_settings_without_shared_seeds_are_compared_by_welchs_interval() -> None:
    first, second = {"0": 3.0, "1": 5.0}, {"7": 1.0, "8": 1.5, "9": 2.0}
    lead = compare_seeds(first, second, is_maximized=False)
    assert (lead.lead, lead.seeds) == (-2.5, 0)
    # By hand: variances of the means 2/2 and .25/3, so 1.08333² / (1²/1 + .08333²/2) = 1.16955 degrees of freedom.
    low, high = welch_interval([3.0, 5.0], [1.0, 1.5, 2.0])
    assert (low + high) / 2 == pytest.approx(2.5)
    assert stdtr(1.16955, (high - 2.5) / 1.08333**0.5) == pytest.approx(0.975, abs=1e-5)
    assert compare_seeds({"0": 1.0}, second, True).interval is None


def test_the_best_is_chosen_on_validation_and_the_test_split_is_named(tmp_path: Path) -> None:
    folder = sweep_gamma(tmp_path / "s", {1: [0.5] * 3, 5: [0.5] * 3, 9: [0.5] * 3})
    validate(folder, {1: [0.9, 0.91, 0.92], 5: [0.97, 0.98, 0.985], 9: [0.8, 0.81, 0.83]})
    best = answer(folder)
    assert (best.criterion, best.metric) == ("validation/accuracy/source", "accuracy/target")
    assert [s.label for s in best.ranked] == ["dann · gamma 5", "dann · gamma 1", "dann · gamma 9"]
    assert best.sentences[0] == (
        "Best by validation/accuracy/source: dann · gamma 5; its accuracy/target: 0.5500 ± 0.0000 (n = 3)."
    )
    assert best.sentences[2].startswith(
        "By accuracy/target itself (a choice by the test split and labels of the target): dann · gamma 9. "
    )
    rows = re.findall(r'<tr( class="best")?><td data-value="dann">', report.write_report(folder).read_text())
    assert rows == ["", ' class="best"', ""], "sorted by the main metric, the chosen one marked"
    markdown = (folder / "report" / "results.md").read_text()
    assert all(sentence in markdown.replace("\\", "") for sentence in best.sentences)


def test_bounds_are_no_candidates_and_each_task_has_its_answer(tmp_path: Path) -> None:
    values = {"source_only": [0.4, 0.41], 1: [0.6, 0.61], 5: [0.7, 0.71], "target_only": [0.98, 0.99]}
    folder = sweep_gamma(tmp_path / "s", values)
    best = answer(folder)
    assert [s.label for s in best.ranked] == ["dann · gamma 5", "dann · gamma 1"]
    assert [s.label for s in best.bounds] == ["source_only", "target_only"]
    trial(folder, "usps", model={"gamma": 1}, data={"source": "usps", "target": "mnist"}, accuracy=0.3)
    assert [a.task for a in answer_sweep(read_sweep(folder))] == ["mnist5k → mnistm5k", "usps → mnist"]
    page = Page(report.write_report(folder)).text
    assert "usps → mnist" in page
    assert sorted(path.name for path in (folder / "report" / "figures").iterdir()) == [
        "answer_mnist5k-mnistm5k.pdf",
        "answer_mnist5k-mnistm5k.png",
        "answer_mnist5k-mnistm5k.svg",
    ], "a single setting is no figure"


def test_the_form_of_the_figure_follows_what_was_swept(tmp_path: Path) -> None:
    def form(*models: dict[str, Any], methods: tuple[str, ...] = ("dann",)) -> tuple[str, list[str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for number, model in enumerate(models):
            trial(folder, f"{number}", methods[number % len(methods)], model=model, accuracy=0.5 + number / 100)
        sweep = read_sweep(folder)
        (only,) = answer_sweep(sweep)
        assert answer_figure.render_answer(only, sweep.keys).keys() == {"svg", "pdf", "png"}
        return answer_figure.choose_form(only, sweep.keys)[:2]

    assert form({"gamma": 1}, {"gamma": 5}) == ("lines", ["model.gamma"])
    grid = [{"gamma": gamma, "lr": lr} for gamma in (1, 2) for lr in (0.1, 0.2)]
    assert form(*grid) == ("maps", ["model.gamma", "model.lr"])
    assert form(*({"gamma": x, "lr": 1 / x} for x in range(1, 6))) == ("panels", ["model.gamma", "model.lr"])
    assert form({"net": "a"}, {"net": "b"}) == ("list", [])
    assert form({}, {}, methods=("dann", "gta")) == ("list", [])
    assert form({"gamma": 1}, {}, {"gamma": 3}, {}, methods=("dann", "gta")) == ("lines", ["model.gamma"])


def test_the_line_shows_every_seed_the_means_and_the_bounds(tmp_path: Path) -> None:
    values = {"source_only": [0.4, 0.42], 1: [0.6, 0.64], 10: [0.7, 0.8], "target_only": [0.98, 0.96]}
    best = answer(
        sweep_gamma(tmp_path / "s", values, eval={"metrics": ["accuracy"], "reference": {"dann": [0.7, 0.9]}})
    )
    (axes,) = answer_figure.draw_answer(best, KEYS).axes
    points = [y for line in axes.lines if line.get_linestyle() == "None" for y in np.asarray(line.get_ydata()).tolist()]
    assert {0.6, 0.64, 0.7, 0.8} <= set(points)
    means = next(line for line in axes.lines if np.size(line.get_xdata()) == 2 and line.get_linestyle() == "-")
    assert np.asarray(means.get_ydata()).tolist() == pytest.approx([0.62, 0.75])
    assert axes.get_xscale() == "log", "1 to 10 is a decade"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert {"dann", "source_only (lower bound)", "target_only (upper bound)", "dann, reported elsewhere"} == set(legend)
    assert "↑ better" in axes.get_ylabel()


def test_columns_are_the_main_metric_first_and_its_selections_in_order(tmp_path: Path) -> None:
    rules = {f"{rule}/accuracy/target": 0.6 for rule in ("oracle", "infomax", "best")}
    steps = {f"{rule}/accuracy/target": {"chosen at step": 1500, "chosen by": "x"} for rule in ("best", "infomax")}
    path = trial(tmp_path / "s", "a", eval={"metrics": ["accuracy", "fid"]})
    evaluate(path, {"kid": 1.0, "accuracy/source": 0.9, "accuracy/target": 0.7, "fid": 2.0, **rules}, provenance=steps)
    sweep = read_sweep(tmp_path / "s")
    assert sweep.columns == [
        "accuracy/target",
        "best/accuracy/target",
        "infomax/accuracy/target",
        "oracle/accuracy/target",
        "accuracy/source",
        "fid",
        "kid",
    ]
    page = report.write_report(tmp_path / "s").read_text()
    assert page.count('title="weights of step 1500"') == 4, "settings and trials, two rules each"
    heads = re.findall(r"accuracy/target <abbr[^>]*>↑</abbr> *<small>(.*?)</small>", page)
    assert heads[:3] == ["last", "selected on source validation", "selected without labels"]
    (row,) = table(tmp_path / "s")
    assert row["best/accuracy/target step"] == "1500"
    assert describe_rule("best/fid", ["fid", "best/fid"]) == "selected on validation"
    assert describe_rule("fid", ["fid"]) == ""
    assert order_metrics(["b", "validation/fid", "a"], ["fid"]) == ["validation/fid", "a", "b"]


def test_as_run_says_what_the_command_line_changed(tmp_path: Path) -> None:
    data = {"dataset": None, "source": "mnist5k", "target": "mnistm5k"}
    folder = sweep_gamma(tmp_path / "s", {1: [0.6], 5: [0.7]}, data=data)
    (folder / "sweep.yaml").write_text("# Does it\n# help?\n#\n# Expect: 0.9\nname: s\n")
    (folder / "submissions.jsonl").write_text(
        '{"time": 1, "overrides": ["train.steps=9"], "commit": "0123456789abcdef", "dirty": true, "arrays": []}\n'
    )
    page = Page(report.write_report(folder)).text
    assert "Does it help?" in page
    assert "it describes the file's own settings, not those of this run" in page
    assert "As run: overrides of the command line: train.steps=9; the same in all trials: source mnist5k" in page
    assert "batch_size 64, steps 2000; commit 0123456789, with changes that are not committed." in page
    assert "null" not in page.partition("As run:")[2].partition("Tables:")[0]


def test_a_terminal_gets_ten_lines_of_eighty_columns_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_gamma(tmp_path / "s", {gamma / 7: [0.6, 0.7, 0.8] for gamma in range(1, 9)})
    (folder / "sweep.yaml").write_text("# " + "Which of the many values of gamma is the best? " * 9 + "\nname: s\n")
    assert report.main([str(folder)]) == 0
    *lines, page = capsys.readouterr().out.splitlines()
    assert page == str(folder / "report" / "index.html")
    assert 4 <= len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert "24 trials: 24 done" in lines
    assert any(line.startswith("Best by accuracy/target") for line in lines)
    trial(tmp_path / "empty", "a", state="running")
    assert report.main([str(tmp_path / "empty")]) == 0
    assert "No finished setting has a metric to compare." in capsys.readouterr().out


def test_pictures_of_the_best_setting_come_first(tmp_path: Path) -> None:
    from PIL import Image

    folder = sweep_gamma(tmp_path / "s", {1: [0.6], 5: [0.9], 7: [0.7]})
    for gamma in (1, 5, 7):
        Image.new("RGB", (8, 8)).save(folder / f"dann,{gamma},0" / "eval" / "samples.png")
    page = Page(report.write_report(folder))
    shown = [a["alt"] for tag, a in page.tags if tag == "img" and "samples.png" in (a["alt"] or "")]
    assert shown == [f"eval/samples.png of dann,{gamma},0" for gamma in (5, 7, 1)]


def test_numbers_follow_a_run_directory_everywhere(tmp_path: Path) -> None:
    folder = sweep_gamma(tmp_path / "s", {1: [0.6], 5: [0.7]})
    evaluate(folder / "dann,1,0", {"accuracy/target": 0.8765}, intervals={"accuracy/target": [0.8, 0.9]})
    page = report.write_report(folder).read_text()
    assert "dann · gamma 1, 0.8765 (1 seed)" in page
    assert "dann · gamma 1 0.8765" in page, "the text beside the figure"
    assert page.count('data-value="0.8765"') == 2
    assert "0.8765" in (folder / "report" / "results.md").read_text()
    assert [row["accuracy/target"] for row in table(folder)] == ["0.8765", "0.7"]
    long = csv.DictReader((folder / "report" / "results_long.csv").read_text().splitlines())
    assert [(row["trial"], row["metric"], row["value"], row["low"], row["high"]) for row in long] == [
        ("dann,1,0", "accuracy/target", "0.8765", "0.8", "0.9"),
        ("dann,5,0", "accuracy/target", "0.7", "", ""),
    ]


def test_a_search_shows_its_history_the_best_so_far_and_each_parameter(tmp_path: Path) -> None:
    folder, name = tmp_path / "s", "validation/accuracy/source"
    objectives = [(0.6, "done"), (0.9, "pruned"), (0.8, "done"), (0.7, "done")]
    for number, (value, state) in enumerate(objectives):
        rows = [{"step": 9, "time": 100.0 - number, "loss": 1.0}]  # they ended in the opposite order
        path = trial(folder, f"t{number}", model={"lr": 10.0**-number}, accuracy=0.1, state=state, rows=rows)
        (path / "objective.json").write_text(json.dumps({"metric": name, "values": {"9": value}}))
    sweep = read_sweep(folder)
    trials = sorted(sweep.trials, key=lambda t: t.ended)
    assert [t.objective for t in trials] == [{name: value} for value in (0.7, 0.8, 0.9, 0.6)]
    history, lr = search_figure.draw_search(trials, name, ["model.lr"], is_maximized=True).axes
    hollow, filled, best = history.lines
    assert [np.asarray(line.get_ydata()).tolist() for line in (hollow, filled)] == [[0.9], [0.7, 0.8, 0.6]]
    assert np.asarray(best.get_ydata()).tolist() == [0.7, 0.8, 0.8, 0.8], "a pruned trial is never the best"
    assert np.asarray(lr.lines[1].get_xdata()).tolist() == [0.001, 0.01, 1.0]
    assert lr.get_xscale() == "log"
    page = Page(report.write_report(folder))
    assert "hollow: pruned ones" in page.text
    (winner,) = answer_sweep(sweep)
    assert [(s.config["model.lr"], s.values(name)) for s in winner.ranked] == [
        (0.01, {"0": 0.8}),
        (0.001, {"0": 0.7}),
        (1.0, {"0": 0.6}),
    ], "a search ranks its finished settings by its objective"
    assert winner.sentences[0] == f"Best by {name}: dann · lr 0.01, 0.8000 (1 seed)."
    assert winner.sentences[2] == "Its accuracy/target: 0.1000 (1 seed)."
    assert {path.name for path in (folder / "report" / "figures").glob("search.*")} == {
        "search.pdf",
        "search.png",
        "search.svg",
    }


def test_a_search_may_go_by_its_metric_in_the_other_direction(tmp_path: Path) -> None:
    name = "validation/accuracy/source"
    for number, value in enumerate((0.6, 0.9)):
        path = trial(tmp_path / "s", f"t{number}", model={"lr": 10.0**-number})
        write_objective(RunDirectory(path), 9, name, value, "minimize")
    sweep = read_sweep(tmp_path / "s")
    assert not sweep.is_maximized(name)
    (best,) = answer_sweep(sweep)
    assert best.sentences[0].startswith(f"Best by {name}: dann · lr 1, 0.6000")
    assert "(↓ better)" in answer_figure.name_axis(best)
    assert [is_maximized(metric) for metric in ("best/accuracy/target", "fid", "loss")] == [True, False, None]


def test_the_answer_names_both_bounds_and_the_lead_over_the_lower_one(tmp_path: Path) -> None:
    values = {"source_only": [0.4, 0.5, 0.6], 1: [0.61, 0.7, 0.79], 5: [0.1, 0.1, 0.1], "target_only": [0.9, 0.9, 0.9]}
    folder = sweep_gamma(tmp_path / "s", values)
    # By hand: differences .21, .2, .19; s = .01; 4.3027 · .01 / √3 = .02484.
    assert answer(folder).sentences[2:] == [
        "Lower bound source_only: 0.5000 ± 0.1000 (n = 3); lead over it: +0.2000 [0.1752, 0.2248] paired over 3 seeds, "
        "more than the noise.",
        "Upper bound target_only: 0.9000 ± 0.0000 (n = 3).",
    ]


def test_more_than_two_swept_keys_are_parallel_coordinates(tmp_path: Path) -> None:
    for number, (lr, net) in enumerate(((0.1, "a"), (0.01, "b"), (0.001, "a"))):
        model = {"gamma": number + 1.0, "lr": lr, "net": net}
        trial(tmp_path / "s", f"{number}", model=model, accuracy=0.5 + number / 10)
    sweep = read_sweep(tmp_path / "s")
    (best,) = answer_sweep(sweep)
    places, names = parallel_figure.place_values(best.ranked, "model.lr")
    assert places == pytest.approx([0.0, 0.5, 1.0]), "logarithmic, best first"
    assert names == {0.0: "0.001", 1.0: "0.1"}
    assert parallel_figure.place_values(best.ranked, "model.net") == ([0.0, 1.0, 0.0], {0.0: "a", 1.0: "b"})
    (lines,) = parallel_figure.draw_parallel(best, best.ranked, sweep.keys).axes[0].collections
    drawn = [np.asarray(path.vertices)[:, 1].tolist() for path in lines.get_paths()]
    assert drawn[-1] == pytest.approx([1.0, 0.0, 0.0, 1.0]), "gamma, lr, net, metric of the best, drawn last"
    assert parallel_figure.render_parallel(best, sweep.keys[:2]) == {}
    text = report.write_report(tmp_path / "s").read_text()
    assert 'href="figures/answer_parallel.pdf"' in text
    assert (tmp_path / "s" / "report" / "figures" / "answer_parallel.pdf").exists()
