"""What two programs or more use, and nothing else. Imports no program."""
