#!/usr/bin/env python
"""Train, resume and evaluate: train_net.py --config-file FILE [options] [KEY VALUE ...]."""

import sys

from panoptic_ext.engine.main import main

if __name__ == "__main__":
    sys.exit(main())
