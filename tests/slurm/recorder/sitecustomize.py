"""Records the steps of real jobs behind the product's back: Python imports this at its start where PYTHONPATH names
its folder, and jobs inherit that. Each process appends a line per step to <TURNOUT_TEST_STEPS>/<run>/<attempt>.rank<n>.

Only the standard library, and only what every interpreter has loaded anyway: torchrun and launchers come by here too.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Recorder:
    """Finds trainer.loop as Python would, and has its Trainer.fit say each step that has been taken."""

    @staticmethod
    def find_spec(name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "trainer.loop" else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_wrap(module: ModuleType) -> None:
                load(module)
                module.Trainer.fit = recording(module.Trainer.fit)

            spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


def recording(fit: Any) -> Any:
    """`fit` that leaves a line {step, time in s since the epoch, port of the group} once a step is done."""

    def recorded(trainer: Any, batches: Iterable[Any]) -> Iterator[int]:
        import json
        import time

        folder = os.path.join(os.environ["TURNOUT_TEST_STEPS"], os.path.basename(os.path.normpath(sys.argv[1])))
        os.makedirs(folder, exist_ok=True)
        name = f"{os.environ['TURNOUT_ATTEMPT']}.rank{os.environ.get('RANK', '0')}"
        # Not buffered: a process that is killed has said what it did.
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for step in fit(trainer, batches):
            line = {"step": step, "time": time.time(), "port": os.environ.get("MASTER_PORT", "")}
            os.write(file, json.dumps(line).encode() + b"\n")
            yield step

    return recorded


if "TURNOUT_TEST_STEPS" in os.environ:
    sys.meta_path.insert(0, Recorder)
