"""The command line: one file per command; ``main`` gathers them, and imports nothing heavy."""
