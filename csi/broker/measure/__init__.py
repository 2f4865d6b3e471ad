"""What a guest's evidence should say, computed from the files that it is started with."""
