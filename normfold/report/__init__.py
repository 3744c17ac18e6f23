"""What a run found, as data and for people."""
