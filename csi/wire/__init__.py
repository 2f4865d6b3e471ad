"""What bytes mean: pure parsers and encoders, one module a foreign format. No I/O."""
