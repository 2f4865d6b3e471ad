"""What to do: pure decisions, (observed, wanted) to steps or an error. No I/O."""
