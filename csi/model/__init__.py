"""What things are: frozen dataclasses, enums and the error tree. Standard library only, no I/O."""
