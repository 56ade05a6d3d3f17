"""What became of submitted trials: their state, tables, log files and submissions."""
