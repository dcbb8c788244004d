"""Convert a folder or file of labels into a data set: the steps, in their order."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.writer import png_name
from panoptic_ext.data.convert.classes import Ask, ClassChoice, ClassTable, decide_classes
from panoptic_ext.data.convert.images import common_root, oriented, place_image, read_header
from panoptic_ext.data.convert.labels import SourceClass, SourceImage
from panoptic_ext.data.convert.output_folder import check_output, whole_folder
from panoptic_ext.data.convert.report import Report
from panoptic_ext.data.convert.resolve import OVERLAPS, Resolved, ResolveRule, resolve
from panoptic_ext.data.convert.source import Source
from panoptic_ext.data.convert.targets import TARGETS
from panoptic_ext.data.convert.targets.target import ResultPlace, Target, WrittenImage
from panoptic_ext.errors import DatasetError, check_known
from panoptic_ext.many_files import ManyFiles, listed_failures

__all__ = ["ConversionOptions", "Converted", "convert"]

REPORT = "report.json"


@dataclass(frozen=True)
class ConversionOptions:
    """How a source is converted.

    Attributes:
        choice: what the user says about the classes.
        rule: how overlaps are resolved; an empty `overlap` takes the source's.
        target: name of the format to write.
        placement: of the images, see `panoptic_ext.data.convert.images.PLACEMENTS`.
        exif: "upright" or "stored" where nothing else tells which pixels labels describe.
        with_stuff: formats of objects alone write stuff too.
        name: of the data set in the block of YAML; "" takes that of the folder.
        overwrite: an earlier result may be replaced.
        num_threads: that read and write.
        progress: show a progress bar on stderr.
    """

    choice: ClassChoice = field(default_factory=ClassChoice)
    rule: ResolveRule = field(default_factory=lambda: ResolveRule(overlap=""))
    target: str = "coco-panoptic"
    placement: str = "link"
    exif: str | None = None
    with_stuff: bool = False
    name: str = ""
    overwrite: bool = False
    num_threads: int = 4
    progress: bool = False


@dataclass(frozen=True)
class Converted:
    """A result.

    Attributes:
        folder: where it is.
        name: of the data set.
        report: what was done and lost.
    """

    folder: str
    name: str
    report: Report


def convert(
    source: Source,
    output: str,
    options: ConversionOptions | None = None,
    *,
    ask: Ask = lambda names: None,
) -> Converted:
    """Convert all images of a source. The result is there whole or not at all.

    An image that cannot be converted does not stop the others; the report names it.

    Args:
        source: the labels.
        output: folder of the result.
        options: see `ConversionOptions`.
        ask: asked about classes of which nothing tells whether they are things, see
            `decide_classes`.

    Raises:
        DatasetError: nothing can be converted, or the folder must not be written to.
        Interrupted: after Ctrl-C or SIGTERM; nothing was written.
    """
    options = options or ConversionOptions()
    check_known("format to write (--to)", options.target, TARGETS, error=DatasetError)
    target_class = TARGETS[options.target]
    inputs = [p for p in (source.inputs.path, source.inputs.semantic) if p]
    written = (*target_class.entries, REPORT)
    check_output(output, inputs, overwrite=options.overwrite, written=written)
    images = source.images()
    classes = decide_classes(_found_classes(source, images, options), options.choice, ask=ask)
    rule = _complete_rule(options.rule, source, classes)
    report = Report(
        f"{source.name}: {source.inputs.path}",
        _in_words(rule),
        classes.categories,
        unannotated=list(source.unannotated()),
        left_out=sorted(classes.left_out),
        void=sorted(classes.void),
    )
    folder = os.path.realpath(output)
    name = options.name or os.path.basename(folder)
    image_root = common_root(images) if options.placement == "reference" else None
    with whole_folder(output) as aside:
        target = target_class(aside, classes.categories, with_stuff=options.with_stuff)
        place = ResultPlace(
            folder, image_root or os.path.join(folder, *target.image_folder.split("/")), name
        )
        work = _Work(source, target, classes, rule, options, written_images(images, image_root))
        work.run(images, report, place)
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=1)
        write_file(os.path.join(aside, REPORT), text.encode(), error=None)
    return Converted(folder, name, report)


def written_images(
    images: Sequence[SourceImage], image_root: str | None
) -> dict[SourceImage, WrittenImage]:
    """The names and ids of the images in the result; their sizes are still unknown, (0, 0).

    Args:
        images: of the source.
        image_root: folder that the result refers to; None where it has the images itself.

    Raises:
        DatasetError: two images would have the same name.
    """
    twice = [name for name, count in Counter(i.name for i in images).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{len(twice)} names of images occur twice, such as {twice[0]}; the result needs one "
            "for each: rename them, or convert their folders one by one"
        )
    stems = Counter(os.path.splitext(image.name)[0] for image in images)
    ids = [image.id for image in images]
    keeps_ids = None not in ids and len({str(i) for i in ids}) == len(ids)
    written = {}
    for number, image in enumerate(images, 1):
        stem = os.path.splitext(png_name(image.name))[0]
        # a.jpg and a.png would have one label map; theirs keep the extension.
        stem = stem if stems[stem] == 1 else image.name
        name = image.name
        if image_root is not None:
            name = os.path.relpath(image.path, image_root).replace(os.sep, "/")
        image_id = image.id if keeps_ids and image.id is not None else number
        written[image] = WrittenImage(image_id, name, stem, (0, 0))
    return written


@dataclass(frozen=True)
class _Work:
    """What the threads share."""

    source: Source
    target: Target
    classes: ClassTable
    rule: ResolveRule
    options: ConversionOptions
    written: dict[SourceImage, WrittenImage]

    def run(self, images: Sequence[SourceImage], report: Report, place: ResultPlace) -> None:
        """Convert every image, and write what they share."""
        files = _files(self.options)
        added = []
        bar = tqdm(
            files.results(images, self._convert),
            "convert",
            len(images),
            unit="image",
            disable=not self.options.progress,
        )
        for image, result in bar:
            if result is not None:
                report.add(image.name, result.resolved)
                added.append((result.image, result.record))
        files.stop.check(
            f"stopped after {files.done} of {len(images)} images; nothing was written, and the "
            "same command starts anew"
        )
        if not added:
            raise DatasetError(listed_failures(files.failed, len(images), "cannot be converted"))
        report.failed.update(files.failed)
        report.notes += [*self.source.notes(), *self.target.close(added, place)]

    def _convert(self, image: SourceImage) -> _ConvertedImage:
        header = read_header(image)
        labels = self.source.labels(image, header)
        if labels.size not in (header.upright, header.stored):
            raise DatasetError(
                f"the labels are of {labels.size[0]} x {labels.size[1]} pixels (height x width), "
                f"image {image.path} has {header.upright[0]} x {header.upright[1]}; both must be "
                "of the same size"
            )
        resolved = resolve(labels, self.classes, self.rule)
        ids = oriented(
            resolved.ids, header, labels.frame, f"image {image.name}", forced=self.options.exif
        )
        resolved = replace(resolved, ids=ids)
        written = replace(self.written[image], size=(ids.shape[0], ids.shape[1]))
        record = self.target.add(written, ids, resolved.groups)
        if self.options.placement != "reference":
            place = self.target.path(self.target.image_folder, written.file_name)
            place_image(image, place, self.options.placement)
        return _ConvertedImage(written, record, resolved)


@dataclass(frozen=True)
class _ConvertedImage:
    image: WrittenImage
    record: Any
    resolved: Resolved


def _found_classes(
    source: Source, images: Sequence[SourceImage], options: ConversionOptions
) -> Sequence[SourceClass]:
    """The classes that the source lists, then others in the labels, by number and name."""
    found = {one.name: one for one in source.classes()}
    if source.lists_all_classes:
        return list(found.values())
    files = _files(options)
    bar = tqdm(
        files.results(images, source.classes_of),
        "classes",
        len(images),
        unit="image",
        disable=not options.progress,
        delay=2,
    )
    others: dict[str, SourceClass] = {}
    for _, classes in bar:
        others.update((one.name, one) for one in classes or () if one.name not in found)
    files.stop.check("stopped while the classes were looked for; nothing was written")
    if not found and not others and files.failed:
        raise DatasetError(listed_failures(files.failed, len(images), "cannot be read"))
    unnumbered = 1 << 31  # behind all numbers
    in_order = sorted(others.values(), key=lambda c: (unnumbered if c.id is None else c.id, c.name))
    return [*found.values(), *in_order]


def _files(options: ConversionOptions) -> ManyFiles[SourceImage]:
    return ManyFiles[SourceImage](lambda image: image.name, num_threads=max(1, options.num_threads))


def _complete_rule(rule: ResolveRule, source: Source, classes: ClassTable) -> ResolveRule:
    """The rule with what the source sets, its classes checked."""
    overlap = rule.overlap or ("priority" if rule.priority else source.overlap)
    check_known("rule of overlaps (--overlap)", overlap, OVERLAPS, error=DatasetError)
    if (overlap == "priority") != bool(rule.priority):
        raise DatasetError(
            "--overlap priority needs --priority, the classes from front to back, and no other "
            "rule takes it"
        )
    by_name = classes.by_name
    for name in rule.priority:
        check_known("class of --priority", name, by_name, error=DatasetError)
    if rule.uncovered is not None:
        check_known("class of --uncovered", rule.uncovered, by_name, error=DatasetError)
        if by_name[rule.uncovered].isthing:
            raise DatasetError(
                f"--uncovered {rule.uncovered} is a thing; pixels that nothing covers can only be "
                "stuff or void"
            )
    return replace(rule, overlap=overlap, first_in_front=source.first_in_front)


def _in_words(rule: ResolveRule) -> str:
    front = OVERLAPS[rule.overlap]
    if rule.overlap == "order" and rule.first_in_front:
        front = "the object that its file lists first is in front"
    elif rule.overlap == "reverse" and rule.first_in_front:
        front = "the object that its file lists last is in front"
    elif rule.overlap == "priority":
        front = f"in front are {', '.join(rule.priority)}, in this order"
    return front + ("" if rule.mixed else ", things before stuff")
