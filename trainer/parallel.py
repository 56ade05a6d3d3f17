"""Collectives over the processes that train one trial."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def broadcast(module: nn.Module) -> None:
    """Copy the weights of process 0 to every process."""
    if torch.distributed.is_initialized():
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def mean_over_processes(accelerator: Accelerator, parts: list[Tensor]) -> None:
    """Replace each tensor by its mean over processes, in place and in one collective."""
    if parts:
        flat = accelerator.reduce(torch.cat([t.flatten() for t in parts]), "mean")
        for tensor, mean in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
            tensor.copy_(mean.view_as(tensor))
