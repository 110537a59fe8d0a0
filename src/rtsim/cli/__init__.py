"""The command line: one module per command, nothing but argument parsing."""
