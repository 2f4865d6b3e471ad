"""Benchmarks: what this driver costs beyond the tools that it needs, measured in one lab run. Start: `python -m bench`."""
