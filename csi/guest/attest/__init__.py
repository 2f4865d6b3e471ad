"""Attestation: evidence, the broker's client, TLS."""
