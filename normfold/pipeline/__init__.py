"""The whole run, from a checkpoint to the files on disk."""
