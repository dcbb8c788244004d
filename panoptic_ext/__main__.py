"""Run `python -m panoptic_ext`, which is the program `panoptic-ext`."""

import sys

from panoptic_ext_cli import main

if __name__ == "__main__":
    sys.exit(main())
