"""The processes that train one trial: their devices, and collectives over them."""

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.config.resolve import check_batch
from trainer.config.schema import Config, Train
from trainer.data.cache import data_root
from trainer.environment import TRUE
from trainer.errors import ConfigError
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.speed import set_options

COMPILED = "compiled"  # below the data root: networks that torch.compile has compiled, for all trials
OPTIONS = ("compile", "fused", "tf32", "cudnn_benchmark", "deterministic")  # to name where they are set


@dataclass(frozen=True)
class SingleProcess:
    """Stand in for Accelerator where this process trains alone, even if a launcher has started others."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True
    scaler: None = None

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in full precision."""
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """Return the tensor: there is nothing to reduce it with."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Do nothing: there is nobody to wait for."""

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: no gradient is scaled."""


Processes: TypeAlias = Accelerator | SingleProcess


def broadcast(processes: Processes, module: nn.Module) -> None:
    """Copy the weights of process 0 to every process."""
    if processes.num_processes > 1:
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def mean_over_processes(processes: Processes, parts: list[Tensor]) -> None:
    """Replace each tensor by its mean over processes, in place and in one collective."""
    if parts:
        flat = processes.reduce(torch.cat([t.flatten() for t in parts]), "mean")
        for tensor, mean in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def describe(accelerator: Accelerator, train: Train) -> str:
    """Return what trains, such as "2 processes, bf16, cpu, global batch 64 = 2 × 32"."""
    count, precision = accelerator.num_processes, accelerator.mixed_precision
    processes = f"{count} processes" if count > 1 else "1 process"
    batch = f"global batch {train.batch_size}" + (f" = {count} × {train.batch_size // count}" if count > 1 else "")
    parts = [processes, "fp32" if precision == "no" else precision, accelerator.device.type, batch]
    parts += [f"{train.micro_batches} micro-batches"] if train.micro_batches > 1 else []
    return ", ".join([*parts, *(name for name in OPTIONS if getattr(train, name))])


def check_gpu(place: str) -> None:
    """Check that torch can use a GPU, unless ACCELERATE_USE_CPU asks for the CPU; ConfigError with what torch says."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE:
        return
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # torch without CUDA, no driver or one that is too old
        reason, devices = " ".join(str(error).split()), os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ConfigError(
            f"{place}: torch {torch.__version__} finds no GPU on {socket.gethostname()}: {reason} "
            f"(CUDA_VISIBLE_DEVICES: {devices}); fix the node or the preset's setup lines, or set gpus_per_node: 0 to "
            "train on CPUs"
        ) from None


def join_processes(run: RunDirectory, config: Config, attempt: Attempt) -> Accelerator:
    """Join the launched group of processes; ConfigError where the device or their number does not fit the config."""
    set_options(config.train, data_root(config.data.root) / COMPILED)
    if config.resources.gpus_per_node and not attempt.is_local:
        check_gpu(f"{run.path}: resources.gpus_per_node: {config.resources.gpus_per_node}")
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(f"{run.path}: train.precision: 'fp16' needs a GPU; choose bf16 or no")
    accelerator = Accelerator(mixed_precision=config.train.precision, cpu=not torch.cuda.is_available())
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if accelerator.device.type == "cuda" and local > gpus:
        raise ConfigError(
            f"{run.path}: {local} processes on a machine with {gpus} GPUs; start one for each GPU, or set "
            "ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if memory_share() < 1 and accelerator.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(memory_share())
    try:
        check_batch(config, accelerator.num_processes)
    except ValueError as error:
        raise ConfigError(f"{run.path}: {error}") from None
    return accelerator


def count_devices(accelerator: Accelerator) -> float:
    """Return how many GPUs train, a shared one counted by the share; without GPUs, how many processes."""
    return accelerator.num_processes * (memory_share() if accelerator.device.type == "cuda" else 1.0)


def memory_share() -> float:
    """Return the share of its GPU that this process may use; below 1 if other trials use the same one."""
    return float(os.environ.get("TURNOUT_GPU_SHARE", "1"))
