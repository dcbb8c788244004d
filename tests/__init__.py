"""Tests of panoptic_ext; the folders mirror the package."""

from pathlib import Path

# The root folder of the repository.
ROOT = Path(__file__).resolve().parent.parent

# Seconds that a test waits for a process of its own. Far more than any takes: this is to end a
# process that hangs, and on a busy machine one that is well takes many times its usual time.
PATIENCE = 1800
