"""LVM in one capsule: what it is (model), how it is read (report, tags, names), how it is run (command)."""
