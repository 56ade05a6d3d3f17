"""Write the report of a sweep from its run directories: report/index.html, results.csv and results.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

from eval.reporting.domain_pairs import compare_methods
from eval.reporting.page import render_page
from eval.reporting.results import read_sweep
from eval.reporting.tables import format_csv, format_markdown
from trainer.environment import use_utf8
from trainer.errors import ConfigError
from trainer.runs.archive import locate
from trainer.runs.atomic import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; return the exit code: 2 without any trial, 1 if it cannot be written."""
    parser = argparse.ArgumentParser(
        description="Write report/index.html, results.csv and results.md of a sweep, which may still be running.",
        epilog="example: python eval/report.py logs/dann",
    )
    parser.add_argument("sweep", type=Path, help="directory of a sweep, logs/<sweep>, or its archive")
    try:
        page = write_report(parser.parse_args(arguments).sweep)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: cannot write the report: {error.strerror}", file=sys.stderr)
        return 1
    print(page)
    return 0


def write_report(directory: Path) -> Path:
    """Write the files of `directory`/report, each atomically; return the page. ConfigError without any trial.

    Of an archive, logs/<sweep>.tar, they are written to logs/<sweep>/report.
    """
    sweep = read_sweep(locate(directory))
    report = directory.with_suffix("" if directory.is_file() else directory.suffix) / "report"
    report.mkdir(exist_ok=True, parents=True)
    pairs = compare_methods(sweep, report)
    for name, text in {
        "results.csv": format_csv(sweep),
        "results.md": format_markdown(sweep, pairs),
        "index.html": render_page(sweep, pairs),
    }.items():
        write_text(report / name, text.encode(errors="replace").decode())  # a file name may be invalid Unicode
    return report / "index.html"


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
