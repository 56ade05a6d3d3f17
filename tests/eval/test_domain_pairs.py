"""The report on pairs of domains: rows from the lower to the upper bound, published results, recall and t-SNE."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import report
from tests.eval.test_report import evaluate, trial


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of three methods with two seeds each, not in the order of the table, beside a single dataset."""
    folder = tmp_path / "logs" / "pairs"
    reference = {"dann": [0.72, 0.92], "source_only": [0.52, 0.52], "target_only": [0.96, 0.96]}
    random = np.random.RandomState(0)
    for method, accuracies in (("dann", (0.8, 0.9)), ("source_only", (0.5, 0.6)), ("target_only", (0.97, 0.97))):
        for seed, value in enumerate(accuracies):
            path = trial(folder, f"{method},seed={seed}", method, seed, eval={"reference": reference})
            metrics = {"accuracy/target": value, "proxy_a_distance": 1.5 - seed}
            metrics |= {
                f"{rule}/accuracy/target": value - 0.1 * (rule == "best") for rule in ("best", "infomax", "oracle")
            }
            evaluate(path, metrics)
            np.savez(path / "eval" / "confusion_target.npz", counts=np.array([[3, 1], [seed, 2 - seed]]))
            points, labels = random.normal(size=(40, 2)).astype(np.float32), np.arange(40) % 2
            np.savez(path / "eval" / "tsne.npz", points=points, labels=labels, domains=np.repeat([0, 1], 20))
    return folder


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the first row of a markdown table that starts with a word."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_run_from_the_lower_to_the_upper_bound_beside_public_reports(sweep: Path) -> None:
    report.write_report(sweep)
    text = (sweep / "report" / "results.md").read_text().partition("## mnist5k → mnistm5k")[2]
    head = cells(text, "configuration")
    assert head[:4] == ["configuration", "n", "last", "selected on source validation"]
    assert head[4:] == ["selected without labels", "oracle †", "proxy A-distance", "reported"]
    starts = [text.index(f"| {method} ") for method in ("source_only", "dann", "target_only")]
    assert starts == sorted(starts)
    row = dict(zip(head, cells(text, "dann"), strict=True))
    assert row["last"] == "0.8500 ± 0.0707"
    assert row["selected on source validation"] == "0.7500 ± 0.0707"
    assert row["proxy A-distance"] == "1.000 ± 0.707"
    assert row["reported"] == "0.72 to 0.92"
    by_class = text.partition("recall of class")[2]
    assert cells(by_class, "dann")[1:] == ["0.750", "0.750"]  # the mean of 3/4, 3/4 and of 2/2, 1/2


def test_the_page_shows_the_rows_and_one_picture_of_all_methods(sweep: Path) -> None:
    page = report.write_report(sweep).read_text()
    assert 'id="domain-pairs"' in page
    assert "0.72 to 0.92" in page
    with Image.open(sweep / "report" / "figures" / "tsne_mnist5k_mnistm5k.png") as image:
        assert image.height > 1.2 * image.width, "a row for each of three methods, a panel by class and one by domain"
    assert page.count('alt="t-SNE of mnist5k and mnistm5k, a row per method"') == 1


def test_unreadable_arrays_are_left_out(sweep: Path) -> None:
    for file in sweep.glob("*/eval/tsne.npz"):
        file.write_bytes(b"PK\x03\x04 torn")
    for file in sweep.glob("dann*/eval/confusion_target.npz"):
        file.unlink()
    text = report.write_report(sweep).read_text()
    assert not (sweep / "report" / "figures" / "tsne_mnist5k_mnistm5k.png").exists()
    assert "a row per method" not in text
    by_class = (sweep / "report" / "results.md").read_text().partition("recall of class")[2].partition("##")[0]
    assert "| source_only " in by_class
    assert "| dann " not in by_class


def test_a_sweep_over_one_dataset_has_no_section_on_domain_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "lone"
    trial(folder, "dann,seed=0", data={"dataset": "digits"}, accuracy=0.5)
    assert 'id="domain-pairs"' not in report.write_report(folder).read_text()
    assert "→" not in (folder / "report" / "results.md").read_text()


def test_a_method_whose_file_no_longer_exists_is_shown_between_the_bounds(sweep: Path) -> None:
    for name in ("removed_method", "../base"):
        trial(sweep, f"{name.replace('/', ' ')},seed=0", name, accuracy=0.7)
    report.write_report(sweep)
    rows = (sweep / "report" / "results.md").read_text().partition("## mnist5k → mnistm5k")[2].partition("\n\n|")[2]
    methods = [line.split()[1] for line in rows.partition("\n\n")[0].splitlines()[2:]]
    assert methods == ["source_only", "../base", "dann", "removed_method", "target_only"]
