"""Kata's direct volumes: the record and the registry on this node."""
