"""DDPM (Ho et al., NeurIPS 2020) without labels, for datasets without classes and for comparison."""

from models.ddpm import DDPM


class DDPMUnconditional(DDPM):
    reads = ("images",)
    conditional = False
