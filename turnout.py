"""Turnout from a notebook, and as the command `turnout`; where a folder holds a models.py, ours is still found.

trial = turnout.open_trial("logs/dann/<trial>")       # trial.predict(images), trial.sample(64)
table = pandas.DataFrame(turnout.results("logs/dann"))
turnout.submit("sweeps/dann.yaml", "train.seed=[0,1]", cluster="local")
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from eval.trial import TrainedTrial

COMMANDS = {
    **{name: f"jobs.{name}" for name in ("submit", "status", "logs", "cancel", "stage", "tidy")},
    "train": "trainer.main",
    "eval": "eval.main",
    "report": "eval.report",
}


def open_trial(path: str | Path, step: int | None = None) -> "TrainedTrial":
    """Return a trained trial from its run directory, at its last exported step or at `step`; ConfigError."""
    from eval.trial import open_trial

    return open_trial(path, step)


def results(sweep: str | Path) -> list[dict[str, Any]]:
    """Return a row for each trial of a sweep: name, state, settings by dotted key, metrics, curves and error.

    `curves` is {name: (steps [n], values [n])} of the losses. ConfigError without any trial.
    """
    from eval.reporting.results import read_sweep

    return [
        {"trial": t.name, "state": t.state, **t.config, **t.metrics, "curves": t.curves, "error": t.error}
        for t in read_sweep(Path(sweep)).trials
    ]


def submit(sweep: str | Path, *overrides: str, **options: str | bool) -> int:
    """Submit a sweep as `turnout submit` does, with options such as `cluster="local"` or `dry_run=True`.

    Return the exit code: 0, 1 if a trial failed, 2 for bad input.
    """
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not False}
    words = [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])]
    return run("submit", [str(sweep), *overrides, *words])


def run(command: str, arguments: list[str]) -> int:
    """Run a command; return its exit code."""
    code: int = import_module(COMMANDS[command]).main(arguments)
    return code


def main() -> int:
    """Run `turnout COMMAND …`; return the exit code, 2 for an unknown command."""
    from trainer.environment import use_utf8

    use_utf8()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        return run(command, arguments)
    usage = f"usage: turnout {{{','.join(COMMANDS)}}} …\n       turnout COMMAND --help shows the options of a command"
    if command in ("-h", "--help"):
        print(usage)
        return 0
    print(f"error: {command}: no such command\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
