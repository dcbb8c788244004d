"""Checkpoints: reading weights of any origin, saving and resuming a run."""
