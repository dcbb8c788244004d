"""Count the parameters of models, part by part, in millions.

    panoptic-ext parameter-table configs/cityscapes/efficientps/efficientps_B*.yaml
    panoptic-ext parameter-table configs/shapes/*/*_R18_shapes.yaml --opts MODEL.DEVICE cpu
    panoptic-ext parameter-table --tensors configs/shapes/mask2former/*_R18_shapes.yaml

With `--tensors`, list instead each tensor of the state dict and its shape, and their number: what a
checkpoint for the model has to hold, key for key. Pretrained weights are not fetched.

With `--learning-rates`, list instead what the keys SOLVER (LAYER_DECAY, BACKBONE_MULTIPLIER,
WEIGHT_DECAY_NORM, BACKBONE_WARMUP_ITERS and the like) make of each parameter: its learning rate
before the schedule, as a factor of SOLVER.BASE_LR and as a number, its weight decay and the
iterations of its warm-up.

    panoptic-ext parameter-table --learning-rates CONFIG --opts SOLVER.LAYER_DECAY 0.8

Exit code: 0, or 2 where a config cannot be read or built.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.engine.build_model import build_model
from panoptic_ext.engine.layer_decay import BACKBONE_MARK
from panoptic_ext.engine.optimizer import solver_groups
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
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument(
        "--tensors", action="store_true", help="list names and shapes of the state dict instead"
    )
    lists.add_argument(
        "--learning-rates",
        action="store_true",
        help="list learning rate, weight decay and warm-up of every parameter instead",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args(argv)


@command_main(parse_args)
def main(args: argparse.Namespace) -> int:
    """Build the models and print the table or the lists; returns 0."""
    rows, lists = [], []
    for path in args.configs:
        untrained = ["MODEL.TIMM.PRETRAINED", "False", "MODEL.VIT.PRETRAINED", "False"]
        cfg = load_cfg(path, ["MODEL.DEVICE", "cpu", *untrained, *args.opts])
        model = build_model(cfg)
        if args.tensors or args.learning_rates:
            listing = list_tensors(model) if args.tensors else list_rates(model, cfg.SOLVER)
            lists.append(f"{Path(path).stem}\n\n{listing}")
            continue
        counts = count_parameters(model)
        millions = {part: f"{count / 1e6:.3f}" for part, count in counts.items()}
        rows.append({"config": Path(path).stem, **millions})
    table = tabulate(
        rows, headers="keys", tablefmt="github", stralign="right", disable_numparse=True
    )
    print("\n\n".join(lists) or table)
    return 0


def list_tensors(model: nn.Module) -> str:
    """A table of the names and shapes in the model's state dict, and their number below it."""
    rows = [(name, _shape(value)) for name, value in model.state_dict().items()]
    table = tabulate(rows, headers=("tensor", "shape"), tablefmt="github", disable_numparse=True)
    return f"{table}\n\n{len(rows)} tensors"


def list_rates(model: nn.Module, solver: CfgNode) -> str:
    """A table of the learning rate, weight decay and warm-up of the model's parameters.

    Args:
        model: as a training builds it.
        solver: the keys SOLVER.

    Returns:
        A row for each parameter, and below the number of those that train and of the groups.
    """
    groups = solver_groups(solver, model)
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    rows = [
        (name, _shape(value), *_rate(group_of.get(value), solver))
        for name, value in model.named_parameters()
    ]
    headers = ("parameter", "shape", "factor", "learning rate", "weight decay", "warm-up")
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    grouped = f"{len(groups)} group{'s' * (len(groups) != 1)}"
    return f"{table}\n\n{len(group_of)} of {len(rows)} parameters are trained, in {grouped}"


def _rate(group: dict[str, Any] | None, solver: CfgNode) -> tuple[str, str, str, str]:
    if group is None:
        return "frozen", "", "", ""
    end = solver.WARMUP_ITERS
    warmup = f"0 to {end}"
    if group.get(BACKBONE_MARK):
        warmup = f"{end} to {end + solver.BACKBONE_WARMUP_ITERS}"
    rates = (group["lr"] / solver.BASE_LR, group["lr"], group["weight_decay"])
    factor, rate, decay = (f"{value:.6g}" for value in rates)
    return factor, rate, decay, warmup


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


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"
