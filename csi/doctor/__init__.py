"""The program for people: why a claim is stuck, told from what the cluster shows."""
