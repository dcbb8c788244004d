"""The program panoptic-ext with your own parts: python run.py train --config-file ..."""

import sys

import backbone  # noqa: F401  each import registers a part
import decoder  # noqa: F401
import fusion  # noqa: F401
import meta_architecture  # noqa: F401

from panoptic_ext_cli import main

if __name__ == "__main__":
    sys.exit(main())
