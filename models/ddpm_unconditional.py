"""DDPM (Ho et al., NeurIPS 2020) that reads no labels: for sets without classes, and for comparison."""

from models.ddpm import DDPM


class DDPMUnconditional(DDPM):
    reads = ("images",)
    conditional = False
