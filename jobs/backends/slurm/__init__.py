"""Everything that knows a Slurm command, option or state."""
