"""The run directory and its one owner: file names, markers, attempts, lock, checkpoints, atomic writes."""
