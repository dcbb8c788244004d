"""`python -m panoptic_ext`: the same as the program `panoptic-ext`."""

import sys

from panoptic_ext_cli import main

if __name__ == "__main__":
    sys.exit(main())
