"""Names of the results that evaluators give, known before anything is evaluated."""

from __future__ import annotations

from detectron2.data import DatasetCatalog

from panoptic_ext.data import get_metadata, has_instances_alone, thing_ids

__all__ = ["MAIN_METRICS", "metric_names"]

MAIN_METRICS = {
    "panoptic": tuple(
        f"panoptic_seg/{kind}{group}" for group in ("", "_th", "_st") for kind in ("PQ", "SQ", "RQ")
    ),
    "semantic": tuple(f"sem_seg/{kind}" for kind in ("mIoU", "fwIoU", "mACC", "pACC")),
    "instance": tuple(
        f"{block}/{kind}"
        for block in ("segm", "bbox")
        for kind in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ),
}
"""Those that do not depend on a data set's classes, by the names of TEST.EVALUATORS."""


def metric_names(evaluator: str, dataset_name: str) -> tuple[str, ...] | None:
    """Names of an evaluator's results, as metrics.json has them.

    Args:
        evaluator: a name of TEST.EVALUATORS.
        dataset_name: of a data set; its JSON is read if needed.

    Returns:
        Such as "sem_seg/IoU-road"; empty if the data set has no truth for the evaluator; None if
        the data set is not registered, or an evaluator of another package names them.

    Raises:
        DatasetError: the data set cannot be read.
    """
    if dataset_name not in DatasetCatalog.list() or evaluator not in MAIN_METRICS:
        return None
    main = MAIN_METRICS[evaluator]
    things = thing_ids(dataset_name)  # reads the classes
    metadata = get_metadata(dataset_name)
    if has_instances_alone(dataset_name):
        if evaluator != "instance":
            return ()
        if metadata.evaluator_type != "coco":
            return None
    if evaluator == "semantic":
        kinds = ("sem_seg/IoU", "sem_seg/ACC")
        return (*main, *(f"{kind}-{name}" for kind in kinds for name in metadata.stuff_classes))
    if evaluator == "panoptic":
        return main
    if not things:
        return ()
    # COCOEvaluator gives the APs of classes where there are several.
    names = [metadata.thing_classes[i] for i in things] if len(things) > 1 else []
    return (*main, *(f"{block}/AP-{name}" for block in ("segm", "bbox") for name in names))
