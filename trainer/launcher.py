"""What `accelerate launch` asks for beyond the environment that it sets, and the processes that it does not start.

On CPUs it starts one process whatever its --num_processes, and its --gradient_accumulation_steps never leaves it. Both
are read here from its command line and its config file, by its own parser.
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trainer.config.document import Setting, Settings
from trainer.config.resolve import check_batch
from trainer.config.schema import Config
from trainer.errors import ConfigError

LAUNCHER = "accelerate launch"
PRECISION, ACCUMULATION = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@dataclass(frozen=True)
class Launch:
    """What a launcher asks of a training; by default nothing, and one process."""

    settings: Settings = field(default_factory=dict)  # adopted where the YAML says nothing; the place is the option
    processes: int = 1  # over all machines
    machines: int = 1
    machine: int = 0  # rank of this one
    address: str = "127.0.0.1"  # of the first machine
    port: int = 0


def read_launch() -> Launch:
    """Return what the environment and the `accelerate launch` that started this process ask for; ConfigError."""
    settings: Settings = {}
    precision, accumulation = os.environ.get(PRECISION, ""), os.environ.get(ACCUMULATION, "")
    if precision not in ("", "no"):  # "no" is also what the launcher passes on where it was not asked for anything
        settings["train.precision"] = Setting(precision, f"environment: {PRECISION}")
    if accumulation not in ("", "1", "auto"):
        settings["train.micro_batches"] = Setting(accumulation, f"environment: {ACCUMULATION}")
    words = find_arguments() if PRECISION in os.environ else []
    if not words:
        return Launch(settings)
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    options = vars(launch_command_parser().parse_args(words))
    if options["config_file"] or (Path(default_config_file).is_file() and not options["cpu"]):
        written = vars(load_config_from_file(options["config_file"]))
        options |= {key: value for key, value in written.items() if options.get(key) is None and key in options}
        precision = options["mixed_precision"] if options["mixed_precision"] != "no" else ""
    else:
        precision = options["mixed_precision"]
    if precision:
        settings["train.precision"] = Setting(precision, f"{LAUNCHER}: mixed_precision")
    if (steps := options["gradient_accumulation_steps"] or 1) > 1:
        settings["train.micro_batches"] = Setting(steps, f"{LAUNCHER}: gradient_accumulation_steps")
    return Launch(
        settings,
        processes=options["num_processes"] or 1,
        machines=options["num_machines"] or 1,
        machine=options["machine_rank"] or 0,
        address=options["main_process_ip"] or Launch.address,
        port=options["main_process_port"] or Launch.port,
    )


def find_arguments() -> list[str]:
    """Return the arguments of the `accelerate launch` among the parents of this process; none without one."""
    with suppress(psutil.Error):  # parents of another user
        for process in psutil.Process().parents():
            words = process.cmdline()
            for i, name in enumerate(Path(word).name for word in words[:4]):
                if name in ("accelerate-launch", "accelerate.commands.launch"):
                    return words[i + 1 :]
                if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[i + 1 : i + 2] == ["launch"]:
                    return words[i + 2 :]
    return []


def check_launch(launch: Launch, config: Config, places: Settings, file: Path) -> None:
    """Check that a trial has the settings that its launcher asks for; ConfigError, with the place of the other one."""
    for key, setting in launch.settings.items():
        block, _, name = key.partition(".")
        value = getattr(getattr(config, block), name)
        if str(value) != str(setting.value):
            place = places[key].place if key in places else file
            raise ConfigError(
                f"{place}: {key}: {value!r} contradicts {setting.value!r} ({setting.place}); remove one, or make them "
                "equal"
            )


def start_processes(launch: Launch, config: Config) -> None:
    """Continue as torchrun with the processes that were asked for and not started, if any are missing; ConfigError."""
    if launch.processes == 1 or "WORLD_SIZE" in os.environ:
        return
    each, rest = divmod(launch.processes, launch.machines)
    if rest or not each:
        raise ConfigError(
            f"{LAUNCHER}: num_processes: {launch.processes} is not divisible by num_machines ({launch.machines}); it "
            "counts the processes of all machines"
        )
    try:
        check_batch(config, launch.processes)
    except ValueError as error:
        raise ConfigError(f"{LAUNCHER}: num_processes: {launch.processes}: {error}") from None
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(each)]
    if launch.machines > 1:
        command += ["--nnodes", str(launch.machines), "--node-rank", str(launch.machine), "--rdzv-backend", "static"]
        command += ["--master-addr", launch.address, "--master-port", str(launch.port or 29500)]
    else:
        command += ["--standalone"]
    os.execv(sys.executable, [sys.executable, *command, *sys.argv])  # noqa: S606
