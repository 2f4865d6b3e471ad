"""Decisions of the helper: (what the cluster and the nodes' pages show) to actions. Pure."""
