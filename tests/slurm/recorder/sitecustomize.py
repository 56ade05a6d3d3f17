"""Record the steps of jobs without a hook in the product.

Python imports sitecustomize at its start from a folder in PYTHONPATH, which jobs inherit. Each process appends a line
per step to <TURNOUT_TEST_STEPS>/<run>/<attempt>.rank<n>. torchrun and launchers import this file, too, so it imports
only modules that every interpreter has loaded already.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Recorder:
    """An import hook that wraps Trainer.fit of trainer.loop so that it records each step."""

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
    """Return `fit` with a line {step, time in s since the epoch, port of the process group} written after each step."""

    def recorded(trainer: Any, batches: Iterable[Any]) -> Iterator[int]:
        import json
        import time

        folder = os.path.join(os.environ["TURNOUT_TEST_STEPS"], os.path.basename(os.path.normpath(sys.argv[1])))
        os.makedirs(folder, exist_ok=True)
        name = f"{os.environ['TURNOUT_ATTEMPT']}.rank{os.environ.get('RANK', '0')}"
        # Unbuffered, so that a process that is killed has recorded its steps.
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for step in fit(trainer, batches):
            line = {"step": step, "time": time.time(), "port": os.environ.get("MASTER_PORT", "")}
            os.write(file, json.dumps(line).encode() + b"\n")
            yield step

    return recorded


if "TURNOUT_TEST_STEPS" in os.environ:
    sys.meta_path.insert(0, Recorder)
