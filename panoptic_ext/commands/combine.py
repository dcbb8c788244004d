"""Merge the semantic predictions of one model and the instances of another into panoptic results.

The rule is that of Kirillov et al. (CVPR 2019): instances by descending score, each on the pixels
that better ones left free, then the stuff classes that are large enough.

Example:
    panoptic-ext combine --json panoptic_val.json --output combined \\
        --instances coco_instances_results.json --semantic sem_seg_predictions.json
    panoptic-ext evaluate --gt panoptic_val.json \\
        --pred combined/panoptic_predictions.json

Detectron2's COCOEvaluator and SemSegEvaluator write the two JSONs into their output folder. So do
models evaluated here, for every data set in OUTPUT_DIR/inference/<data set>/: instances always,
semantic predictions with TEST.WRITE_PREDICTIONS True. A folder of grey PNGs, named like the images,
serves as --semantic too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from panoptic_ext.combine.images import ImageList
from panoptic_ext.combine.inputs import (
    SEMANTIC_IDS,
    InstanceResults,
    SemanticPredictions,
    open_semantic,
)
from panoptic_ext.combine.merge import CombinedFiles, combine_files
from panoptic_ext.commands.command_line import (
    command_main,
    command_parser,
    fraction,
    non_negative_int,
)
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError, listed
from panoptic_ext.fusion import FusionRule


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("combine", __doc__, config_values=True)
    add = parser.add_argument
    add("--config-file", default="", help="config that registers the data set; see --dataset")
    add("--dataset", help="registered name (default: the one data set in the config's TEST)")
    add("--json", help="in place of both: COCO panoptic JSON with images and categories")
    add("--instances", required=True, help="JSON of COCO detection results with run lengths")
    add("--semantic", required=True, help="JSON of semantic results, or folder of label PNGs")
    add("--output", required=True, help="folder for panoptic_predictions.json and its PNGs")
    add("--score-threshold", type=fraction, default=0.5, help="least score of an instance")
    add("--overlap-threshold", type=fraction, default=0.5,
        help="largest share of an instance that better ones may cover")  # fmt: skip
    add("--stuff-area-threshold", type=non_negative_int, default=4096, metavar="PIXELS",
        help="least area of stuff; default: 4096")  # fmt: skip
    add("--semantic-ids", choices=SEMANTIC_IDS, default="dataset",
        help="semantic labels are category ids of the JSON (dataset) or positions in its list"
        " (contiguous, as Cityscapes' train ids); default: dataset")  # fmt: skip
    add("--ignore-label", type=int, default=255, help="semantic label of void; default: 255")
    add("--allow-missing", action="store_true", help="go on where semantic predictions are missing")
    add("--threads", type=non_negative_int, default=os.cpu_count() or 1, metavar="N")
    return parser.parse_args(argv)


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Combine everything; returns 0."""
    images = find_images(args)
    instances = InstanceResults(args.instances, images)
    semantic = open_semantic(
        args.semantic, images, ids=args.semantic_ids, ignore_label=args.ignore_label
    )
    rule = FusionRule(
        images.thing_ids,
        len(images.categories),
        score_threshold=args.score_threshold,
        overlap_threshold=args.overlap_threshold,
        stuff_area_threshold=args.stuff_area_threshold,
    )
    result = combine_files(
        images,
        instances,
        semantic,
        args.output,
        rule,
        allow_missing=args.allow_missing,
        num_threads=args.threads,
        progress=True,
    )
    report(result, semantic)
    return 0


def find_images(args: argparse.Namespace) -> ImageList:
    """The images and categories of the data set that the command line names."""
    if args.json:
        if args.dataset or args.config_file:
            raise ConfigError("--json names the data set alone; leave --dataset, --config-file out")
        return ImageList.of_json(args.json)
    cfg = load_cfg(args.config_file, args.opts, use_data=False)
    names = [args.dataset] if args.dataset else list(cfg.DATASETS.TEST)
    if len(names) != 1:
        names_found = f"DATASETS.TEST names {len(names)} ({', '.join(names)})" if names else "none"
        raise ConfigError(f"expected one data set, found {names_found}; give --dataset or --json")
    return ImageList.of_dataset(names[0])


def report(result: CombinedFiles, semantic: SemanticPredictions) -> None:
    """Print what was written, and the images and files that were left out."""
    print(
        f"{result.images} images, {result.things} things + {result.stuff} stuff: {result.json} and"
        f" {result.png_root}{os.sep}"
    )
    without_instances = set(result.without_instances)
    without_both = [i for i in result.without_semantic if i in without_instances]
    for text, ids in (
        ("images have no instance prediction", result.without_instances),
        ("images have no semantic prediction", result.without_semantic),
        ("images have neither and are void all over", without_both),
        ("PNGs belong to no image and were not read", semantic.ignored),
    ):
        if ids:
            print(f"{len(ids)} {text}: {listed(ids)}")
