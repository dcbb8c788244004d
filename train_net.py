#!/usr/bin/env python
"""`panoptic-ext train` of this checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[0]))
from panoptic_ext_cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
