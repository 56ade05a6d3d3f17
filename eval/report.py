"""Write the report of a sweep from its run directories: report/index.html, its tables and its figures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from eval.reporting.answer import answer_sweep, format_answer
from eval.reporting.answer_figure import render_answer
from eval.reporting.domain_pairs import compare_methods
from eval.reporting.page import render_page
from eval.reporting.parallel_figure import render_parallel
from eval.reporting.results import read_sweep
from eval.reporting.search_figure import render_search
from eval.reporting.tables import format_csv, format_long_csv, format_markdown
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs.archive import locate
from trainer.runs.atomic import replace_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; return the exit code: 2 without any trial, 1 if it cannot be written."""
    parser = argparse.ArgumentParser(
        description="Write report/index.html of a sweep, which may still be running; beside it results.csv (a row per "
        "trial), results_long.csv (a row per trial and metric), results.md and figures/; print the answer.",
        epilog="examples: python eval/report.py logs/dann; python eval/report.py logs/dann logs/gta --out comparison",
    )
    parser.add_argument("sweeps", type=Path, nargs="+", help="directory of a sweep, logs/<sweep>, or its archive")
    parser.add_argument(
        "--out", type=Path, help="directory of the report; needed to compare several sweeps on one page"
    )
    options = parser.parse_args(arguments)
    try:
        page, answer = build_report(*options.sweeps, report=options.out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: cannot write the report: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{answer}\n{page}")
    return 0


def write_report(directory: Path) -> Path:
    """Write the files of `directory`/report, each atomically; return the page. ConfigError without any trial.

    Of an archive, logs/<sweep>.tar, they are written to logs/<sweep>/report.
    """
    return build_report(directory)[0]


def build_report(directory: Path, *more: Path, report: Path | None = None) -> tuple[Path, str]:
    """Write the report of one or several sweeps; return the page and the answer for a terminal.

    `report` is the directory to write to, by default that of `write_report`; ConfigError without it for several.
    """
    if more and not report:
        raise ConfigError("command line: several sweeps: give the directory of their report: --out comparison")
    sweep = read_sweep(*map(locate, (directory, *more)))
    report = report or directory.with_suffix("" if directory.is_file() else directory.suffix) / "report"
    report.mkdir(exist_ok=True, parents=True)
    pairs, answers = compare_methods(sweep, report), answer_sweep(sweep)
    figures = [(a, render_answer(a, sweep.keys), render_parallel(a, sweep.keys)) for a in answers]
    search = render_search(sweep)
    files = {
        "results.csv": format_csv(sweep).encode(errors="replace"),  # a file name may be invalid Unicode
        "results_long.csv": format_long_csv(sweep).encode(errors="replace"),
        "results.md": format_markdown(sweep, pairs, answers).encode(errors="replace"),
        "index.html": render_page(sweep, pairs, figures, search, report).encode(errors="replace"),
    }
    for answer, forms, parallel in figures:
        files |= {f"figures/{answer.slug}.{form}": content for form, content in forms.items()}
        files |= {f"figures/{answer.slug}_parallel.{form}": content for form, content in parallel.items()}
    files |= {f"figures/search.{form}": content for form, content in search.items()}
    for name, content in files.items():
        (report / name).parent.mkdir(exist_ok=True)
        with replace_file(report / name, durable=False) as temporary:
            temporary.write_bytes(content)
    return report / "index.html", format_answer(sweep, answers)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
