"""The lab: a node, a guest VM and a played Kata. Tests, demo and bench use it; it is never shipped."""
