"""Collectives over the processes that train one trial."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn


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
