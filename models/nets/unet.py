"""The U-Nets that diffusion and flow methods share, by name."""

from typing import Any

from torch import nn

from models.base import DataSpec
from models.checks import UNETS
from models.nets.attention_unet import AttentionUNet
from models.nets.context_unet import ContextUNet

NETS: dict[str, type[ContextUNet] | type[AttentionUNet]] = {
    "context_unet": ContextUNet,
    "attention_unet": AttentionUNet,
}
# Times of a network that is trained at all times of an interval: time u is given to it as TIMES * u, not rounded, so
# that the sines of attention_unet tell neighbours apart.
TIMES = 1000


def build(
    net: str, data: DataSpec, classes: int, width: int | None, timesteps: int = TIMES, **options: Any
) -> nn.Module:
    """Return one of NETS; without a width in its published one. ValueError for an indivisible size or width."""
    return NETS[net](data.channels, data.size, classes, timesteps, width or UNETS[net][0], **options)
