"""Start, watch and cancel the trials of a sweep, on this machine or on Slurm."""
