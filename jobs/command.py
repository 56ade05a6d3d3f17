"""Shared parts of the commands in jobs/."""

import argparse
import os
import sys

from rich.console import Console


def create_parser(name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Return a parser for jobs/<name>.py whose help shows description and examples as they are."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"jobs/{name}.py", description=description, epilog=examples, formatter_class=layout)


def discard_output() -> int:
    """Send further output nowhere, after the reader of a pipe, such as head, has closed it; return exit code 0."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Terminal(Console):
    """A console whose reader may leave, as `head` does: what follows goes nowhere, and the command does its work."""

    def on_broken_pipe(self) -> None:
        """Discard all further output; rich would end the program with exit code 1."""
        self.quiet = True
        discard_output()


def print_plain(console: Console, text: str) -> None:
    """Print a line without markup, colours or wrapping, so that it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
