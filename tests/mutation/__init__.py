"""Breaks the lines that carry promises, one at a time, and looks whether a test notices (`make mutate`)."""
