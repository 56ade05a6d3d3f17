"""Where jobs run: this machine or Slurm, behind one interface."""
