#!/usr/bin/env python
"""Train, resume and evaluate: train_net.py --config-file FILE [options] [KEY VALUE ...]."""

import os
import signal
import sys
import warnings

# Read when torch loads. Threads that wait by spinning cost several times the work where the
# machine has anything else to do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# fvcore and Detectron2 still script a few functions, and torch says so at every start.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads: no traceback

from panoptic_ext.engine.main import main

if __name__ == "__main__":
    sys.exit(main())
