"""Flow matching (Lipman et al., ICLR 2023) without labels, for datasets without classes and for comparison."""

from models.flow_matching import FlowMatching


class FlowMatchingUnconditional(FlowMatching):
    reads = ("images",)
    conditional = False
