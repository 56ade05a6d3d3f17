"""Options of torch that make a training faster, or exactly repeatable; each changes its numbers, none by default."""

import os
from pathlib import Path

import torch

from models.base import Method
from trainer.config.schema import Train


def set_options(train: Train, compiled: Path) -> None:
    """Set what has to be set before torch computes anything; `compiled`: directory for compiled networks."""
    if train.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    if train.cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of cuBLAS
        torch.set_deterministic_debug_mode("error")
    if train.compile:
        if train.deterministic:
            torch.use_deterministic_algorithms(True)  # the same for compiled code, and imports its compiler
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))


def compile_networks(method: Method) -> None:
    """Compile the networks of a method in place, at their first call, except those that are differentiated twice."""
    for name, network in method.named_children():
        if name not in method.differentiated_twice:
            network.compile()


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer update all parameters in one kernel, if it has one: Adam, AdamW, SGD and Adagrad have."""
    for group in optimizer.param_groups:
        if "fused" in group:
            group |= {"fused": True, "foreach": False}
