"""Write a trained EoMT as a model of transformers, which from_pretrained and the hub take.

    panoptic-ext export-transformers --model output/street --output street-eomt
    panoptic-ext export-transformers --model eomt_large_640_coco --weights pytorch_model.bin \\
        --output eomt-large

The folder has config.json, preprocessor_config.json and model.safetensors, and gives the same
logits there: EomtForUniversalSegmentation, of DINOv3 encoders EomtDinov3ForUniversalSegmentation. A
model of MODEL.META_ARCHITECTURE TransformersPanoptic is written as what it is.

Exit code: 0, or 2 where the model cannot be read, or transformers has none like it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.errors import ConfigError
from panoptic_ext.model_zoo.eomt_export import export_eomt
from panoptic_ext.modeling.backbone.vit_names import is_dinov3
from panoptic_ext.modeling.meta_arch.eomt import PanopticExtEoMT
from panoptic_ext.modeling.meta_arch.transformers_panoptic import TransformersPanoptic
from panoptic_ext.prediction.load import PanopticPredictor, load


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("export-transformers", __doc__, config_values=True)
    add = parser.add_argument
    add("--model", required=True, help="name in the zoo, folder of a training run, or YAML file")
    add("--weights", default=None, help="checkpoint; default: the run's last one or MODEL.WEIGHTS")
    add("--output", required=True, help="folder; its files of these names are replaced")
    add(
        "--image-size",
        type=int,
        default=0,
        help="side of the square images that their model takes, pixels; default: that of the "
        "position embedding, of DINOv3 INPUT.IMAGE_SIZE",
    )
    add(
        "--transformers-4",
        action="store_true",
        help="names of the giant encoder's MLP as in transformers 4",
    )
    return parser.parse_args(argv)


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Write the folder; returns 0."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    loaded = load(args.model, weights=args.weights, device="cpu", opts=args.opts)
    kind = _write(loaded, args)
    print(f"{os.path.abspath(args.output)}: {kind}.from_pretrained({args.output!r}) reads it")
    return 0


def _write(loaded: PanopticPredictor, args: argparse.Namespace) -> str:
    """Write the model; the name of transformers' class."""
    model = loaded.predictor.model
    if isinstance(model, TransformersPanoptic):
        model.save_pretrained(args.output)
        return type(model.network).__name__
    if not isinstance(model, PanopticExtEoMT):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {loaded.cfg.MODEL.META_ARCHITECTURE}, but only an EoMT "
            "(PanopticExtEoMT) and a TransformersPanoptic can be written as a model of "
            "transformers; for weights of Mask2Former there is "
            "panoptic_ext.model_zoo.transformers_weights.to_transformers"
        )
    names = [loaded.classes[i] for i in model.class_ids.tolist()]
    size = args.image_size
    if not size and is_dinov3(model.backbone.net.state_dict()):
        size = loaded.cfg.INPUT.IMAGE_SIZE
    return export_eomt(
        model,
        args.output,
        class_names=names,
        image_size=size,
        channels=loaded.cfg.INPUT.FORMAT,
        packed_swiglu=args.transformers_4,
    )
