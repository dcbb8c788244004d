"""Count the parameters of models, part by part, in millions.

    panoptic-ext parameter-table configs/cityscapes/efficientps/efficientps_B*.yaml
    panoptic-ext parameter-table configs/shapes/*/*_R18_shapes.yaml --opts MODEL.DEVICE cpu
    panoptic-ext parameter-table --tensors configs/shapes/mask2former/*_R18_shapes.yaml

With `--tensors`, list instead each tensor of the state dict and its shape, and their number: what a
checkpoint for the model has to hold, key for key. Pretrained weights are not fetched.

Exit code: 0, or 2 where a config cannot be read or built.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.engine.run_config import load_cfg

# Prefix of parameter names -> part of the table. The longest prefix that fits decides.
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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("parameter-table", __doc__)
    parser.add_argument("configs", nargs="+", help="YAML files")
    parser.add_argument(
        "--tensors", action="store_true", help="list names and shapes of the state dict instead"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args(argv)


@command_main(parse_args)
def main(args: argparse.Namespace) -> int:
    """Build the models and print the table or the lists; returns 0."""
    rows, lists = [], []
    for path in args.configs:
        options = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", "False", *args.opts]
        model = build_model(load_cfg(path, options))
        counts = count_parameters(model)
        millions = {part: f"{count / 1e6:.3f}" for part, count in counts.items()}
        rows.append({"config": Path(path).stem, **millions})
        lists.append(f"{Path(path).stem}\n\n{list_tensors(model)}")
    table = tabulate(
        rows, headers="keys", tablefmt="github", stralign="right", disable_numparse=True
    )
    print("\n\n".join(lists) if args.tensors else table)
    return 0


def list_tensors(model: nn.Module) -> str:
    """A table of the names and shapes in the model's state dict, and their number below it."""
    rows = [
        (name, " x ".join(map(str, value.shape)) or "scalar")
        for name, value in model.state_dict().items()
    ]
    table = tabulate(rows, headers=("tensor", "shape"), tablefmt="github", disable_numparse=True)
    return f"{table}\n\n{len(rows)} tensors"


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of the model, and their "total".

    Buffers, such as those of frozen norms, are not counted. Parts without parameters are left out;
    parameters with none of the prefixes of `PARTS` count as "other".
    """
    counts = dict.fromkeys([*PARTS.values(), "other"], 0)  # in the order of the table's columns
    for name, parameter in model.named_parameters():
        fitting = [prefix for prefix in PARTS if name.startswith(prefix)]
        counts[PARTS[max(fitting, key=len)] if fitting else "other"] += parameter.numel()
    return {part: n for part, n in counts.items() if n} | {"total": sum(counts.values())}
