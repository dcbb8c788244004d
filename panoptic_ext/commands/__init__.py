"""Commands: what train_net.py and tools/ run."""
