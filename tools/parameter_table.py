#!/usr/bin/env python
"""Count the parameters of models, part by part, in millions.

    python tools/parameter_table.py configs/cityscapes/efficientps/efficientps_B*.yaml
    python tools/parameter_table.py configs/shapes/*/*_R18_shapes.yaml --opts MODEL.DEVICE cpu

Pretrained weights are not fetched. Exit code: 0, or 2 where a config cannot be read or built.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# fvcore and Detectron2 script functions, and torch says so at every start.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from panoptic_ext.engine.setup import load_cfg
from panoptic_ext.errors import PanopticExtError

# Where a part of the table begins in a model; of several that fit, the longest counts.
PARTS = {
    "backbone": "backbone",
    "backbone.bottom_up": "backbone",
    "backbone.top_down": "FPN",
    "backbone.bottom_to_top": "FPN",
    "backbone.output": "FPN",
    "backbone.fpn_": "FPN",
    "sem_seg_head": "semantic head",
    "proposal_generator": "RPN",
    "roi_heads.box": "box head",
    "roi_heads.mask": "mask head",
    "fusion": "fusion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="YAML files")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    rows = []
    try:
        for path in args.configs:
            options = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", "False", *args.opts]
            counts = count_parameters(build_model(load_cfg(path, options)))
            millions = {part: f"{count / 1e6:.3f}" for part, count in counts.items()}
            rows.append({"config": Path(path).stem, **millions})
    except PanopticExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        tabulate(rows, headers="keys", tablefmt="github", stralign="right", disable_numparse=True)
    )
    return 0


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of the model, and their "total".

    Frozen norms have buffers in their place, which are not counted. Parts without parameters are
    left out; what belongs to none of `PARTS` is "other".
    """
    counts = dict.fromkeys([*PARTS.values(), "other"], 0)
    for name, parameter in model.named_parameters():
        fitting = [prefix for prefix in PARTS if name.startswith(prefix)]
        counts[PARTS[max(fitting, key=len)] if fitting else "other"] += parameter.numel()
    return {part: n for part, n in counts.items() if n} | {"total": sum(counts.values())}


if __name__ == "__main__":
    sys.exit(main())
