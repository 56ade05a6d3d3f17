"""From YAML to resolved trials; imports nothing heavy."""
