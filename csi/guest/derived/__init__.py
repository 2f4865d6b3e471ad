"""Volumes at a broker that keeps no register (a plain Trustee): keys derived from a resource, only the disk to look at."""
