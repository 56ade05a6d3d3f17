"""Start and end of a program: what other launchers left in the environment, text that is not UTF-8, the exit code."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from trainer.errors import ConfigError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # of each process of torchrun or accelerate launch, in a folder of the launcher
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LEFTOVERS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(PMI_|OMPI_COMM_WORLD_|MV2_COMM_WORLD_)\w*(RANK|SIZE)"
)
TRUE = ("1", "true", "yes", "on", "y", "t")
ALLOWED = ("ACCELERATE_USE_CPU",)


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale has another encoding."""
    if not sys.flags.utf8_mode and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def run_program(main: Callable[[], int]) -> NoReturn:
    """Call the main function of a program that uses torch, and exit with its code, without Python's shutdown.

    All is on disk by then. A shutdown takes a second with torch loaded, and threads of gloo sometimes abort it.
    """
    use_utf8()
    code = 1
    try:
        code = main()
    except Exception:  # noqa: BLE001 (the end of a program, as Python itself would print it)
        traceback.print_exc()
    with suppress(OSError):  # the disk of the log may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def prepare_environment() -> None:
    """Drop what another launcher left in the environment; ConfigError if it asks for what is not done.

    A process that neither torchrun nor one of our own workers started is alone: a size above 1 is then an error.
    """
    for name, value in os.environ.items():
        if name.startswith("ACCELERATE_USE_") and name not in ALLOWED and value.lower() in TRUE:
            feature = name.removeprefix("ACCELERATE_USE_")
            raise ConfigError(
                f"environment: {name}={value}: {feature} is not supported; unset {name}, or leave it out of the "
                "options and the config file of accelerate launch"
            )
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_TORCH_DEVICE"):
        if (value := os.environ.get(name, "")).lower() not in ("", "no"):
            raise ConfigError(
                f"environment: {name}={value}: not supported; unset {name}, or leave it out of the options and the "
                "config file of accelerate launch"
            )
    if is_torchrun_alive():
        return
    for name in SIZES if "TURNOUT_ATTEMPT" not in os.environ else ():
        if (size := os.environ.get(name, "1")) not in ("", "0", "1"):
            raise ConfigError(
                f"environment: {name}={size}: torchrun did not start this process, which would wait forever; "
                f"unset {name}, or start several processes by: torchrun --nproc-per-node {size} …"
            )
    for name in [name for name in os.environ if LEFTOVERS.fullmatch(name)]:
        del os.environ[name]


def is_torchrun_alive() -> bool:
    """Return whether a torchrun that still runs started this process; it removes its folder when it ends."""
    return ERROR_FILE in os.environ and Path(os.environ[ERROR_FILE]).parent.is_dir()
