"""Track submitted trials: their state, the table that shows it, their log files and the record of submissions."""
