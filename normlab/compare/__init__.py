"""Comparison: what to run, what was run, and what it means."""
