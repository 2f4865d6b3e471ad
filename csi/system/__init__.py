"""Doing it: the only package that runs processes, makes system calls and opens kernel files."""
