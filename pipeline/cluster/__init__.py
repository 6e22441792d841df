"""Files that make a Ray cluster, see README.md there."""
