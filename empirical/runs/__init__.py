"""Runs: units of work, who does them, where their files are, and how far they are."""
