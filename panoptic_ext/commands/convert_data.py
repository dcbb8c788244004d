"""Convert labels of other tools to COCO panoptic, ready to train on, and COCO panoptic to others.

    panoptic-ext data convert labelled --output street --things car,person
    panoptic-ext data convert instances_train.json --image-root train2017 \\
        --semantic stuff_pngs --classes classes.txt --output street
    panoptic-ext data convert street --to semantic --output street_semantic

The folder of the result is there whole or not at all; report.json in it says what was lost.

Exit code: 0 all images were converted, 1 some could not be, 2 nothing was written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from panoptic_ext.commands.command_line import command_main, command_parser, non_negative_int
from panoptic_ext.data.convert import (
    SOURCES,
    TARGETS,
    ClassChoice,
    ConversionOptions,
    Converted,
    ResolveRule,
    SourceInputs,
    convert,
    open_source,
)
from panoptic_ext.data.convert.class_file import read_class_file
from panoptic_ext.data.convert.classes import ask_on_terminal
from panoptic_ext.data.convert.images import PLACEMENTS
from panoptic_ext.data.convert.labels import FRAMES
from panoptic_ext.data.convert.resolve import OVERLAPS, REGIONS
from panoptic_ext.data.convert.sources import AUTO
from panoptic_ext.many_files import failure_line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("data convert", __doc__)
    parser.epilog = _formats()
    add = parser.add_argument
    add("input", help="file or folder of the labels")
    add("--output", required=True, help="folder for the result")
    add("--from", dest="source", default=AUTO, metavar="FORMAT", choices=[AUTO, *SOURCES],
        help="format of the labels; default: auto, which recognises it")  # fmt: skip
    add("--to", default="coco-panoptic", metavar="FORMAT", choices=[*TARGETS],
        help="format of the result; default: coco-panoptic")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier result in --output")
    add("--name", default="", help="of the data set in dataset.yaml; default: that of --output")
    add("--workers", type=non_negative_int, default=4, help="threads that read and write files")
    _add_inputs(parser.add_argument_group("where labels and images are"))
    _add_classes(parser.add_argument_group("classes"))
    _add_overlaps(parser.add_argument_group("one segment for each pixel"))
    return parser.parse_args(argv)


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image-root", help="folder of the images, where they are not beside the labels")
    add("--png-root", help="folder of the label PNGs of a COCO panoptic JSON")
    add("--semantic", help="folder of PNGs with a class in each pixel, behind all objects")
    add("--divisor", type=non_negative_int, default=1000, metavar="N",
        help="of PNGs with class and instance in one number; default: 1000")  # fmt: skip
    add("--void-values", type=_numbers, default="0", metavar="N,N",
        help="class numbers of PNGs that mean no class; default: 0")  # fmt: skip
    add("--images", choices=PLACEMENTS, default="link",
        help=f"images of the result: {_choices(PLACEMENTS)}; default: link")  # fmt: skip
    add("--exif", choices=FRAMES,
        help="labels are of images as turned by their EXIF tag (upright), or as in the file "
        "(stored), where sizes and format do not tell")  # fmt: skip


def _add_classes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--things", metavar="A,B", help="countable classes, or all; the others are stuff")
    add("--stuff", metavar="A,B", help="the other classes, or all; the others are things")
    add("--classes", metavar="FILE",
        help="all classes, with names, kinds, ids, colours: COCO panoptic JSON, a JSON or YAML "
        "list, or text with lines `name, thing, 7, #ff0000`")  # fmt: skip
    add("--void", metavar="A,B", help="classes whose pixels become void")
    add("--leave-out", metavar="A,B", help="classes to treat as if they were not labelled")
    add("--with-stuff", action="store_true", help="write stuff too in formats of objects alone")


def _add_overlaps(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--overlap", choices=OVERLAPS,
        help=f"{_choices(OVERLAPS)}; default: that of the format")  # fmt: skip
    add("--priority", metavar="A,B", help="classes from front to back")
    add("--mixed", action="store_true",
        help="stuff may hide things; else things are before crowds, both before stuff")  # fmt: skip
    add("--uncovered", metavar="CLASS", help="stuff class of pixels without label; default: void")
    add("--min-area", type=non_negative_int, default=1, metavar="PIXELS",
        help="leave smaller segments out")  # fmt: skip
    add("--thing-regions", choices=REGIONS, default="crowd",
        help="what a region of a thing class becomes that is not separated into objects: "
        f"{_choices(REGIONS)}; default: crowd")  # fmt: skip


@command_main(
    parse_args,
    output=lambda args: args.output,
    stopped=lambda args: "stopped; nothing was written",
)
def main(args: argparse.Namespace) -> int:
    """Convert everything; returns 0, or 1 if some images could not be converted."""
    classes = read_class_file(args.classes) if args.classes else None
    inputs = SourceInputs(
        args.input,
        image_root=args.image_root,
        png_root=args.png_root,
        semantic=args.semantic,
        divisor=args.divisor,
        names={c.id: c.name for c in classes or () if c.id is not None},
        void_values=args.void_values,
    )
    choice = ClassChoice(
        things=_names(args.things),
        stuff=_names(args.stuff),
        listed=classes,
        file=args.classes or "",
        void=frozenset(_names(args.void) or ()),
        left_out=frozenset(_names(args.leave_out) or ()),
    )
    rule = ResolveRule(
        overlap=args.overlap or "",
        priority=_names(args.priority) or (),
        mixed=args.mixed,
        uncovered=args.uncovered,
        least_area=args.min_area,
        regions=args.thing_regions,
    )
    options = ConversionOptions(
        choice=choice,
        rule=rule,
        target=args.to,
        placement=args.images,
        exif=args.exif,
        with_stuff=args.with_stuff,
        name=args.name,
        overwrite=args.overwrite,
        num_threads=args.workers,
        progress=sys.stderr.isatty(),
    )
    source = open_source(args.source, inputs)
    return _print(convert(source, args.output, options, ask=ask_on_terminal))


def _print(converted: Converted) -> int:
    """Print the report and where the result is; the exit code."""
    report = converted.report
    print("\n".join(report.lines()))
    print(f"\nresult: {converted.folder}")
    block = os.path.join(converted.folder, "dataset.yaml")
    if os.path.isfile(block):
        with open(block, encoding="utf-8") as file:
            print(f"to train on it, from dataset.yaml there:\n\n{file.read()}")
    if not report.failed:
        return 0
    total = report.images + len(report.failed)
    sys.stderr.write(f"{len(report.failed)} of {total} images could not be converted:\n")
    for name, reason in report.failed.items():
        sys.stderr.write(f"  {failure_line(name, reason)}\n")
    return 1


def _names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list with commas; None where there is none."""
    if text is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> frozenset[int]:
    """An argparse type: whole numbers with commas."""
    try:
        return frozenset(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from error


def _choices(options: dict[str, str]) -> str:
    return ", ".join(f"{name} ({text})" for name, text in options.items())


def _formats() -> str:
    lines = ["formats to read (--from):"]
    lines += [f"  {name:16} {source.description}" for name, source in SOURCES.items()]
    lines += ["", "formats to write (--to):"]
    lines += [f"  {name:16} {target.description}" for name, target in TARGETS.items()]
    return "\n".join(lines)
