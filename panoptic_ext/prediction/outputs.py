"""The segments to draw or to save, from a model's panoptic, instance or semantic output.

Shapes: H x W the image, N instances, K classes.
"""

from __future__ import annotations

from typing import Any

import torch

from panoptic_ext.errors import ConfigError

__all__ = ["panoptic_result", "segments_to_draw"]

Segments = tuple[torch.Tensor, list[dict[str, Any]] | None]


def panoptic_result(outputs: dict[str, Any]) -> Segments:
    """The model's panoptic result, on the CPU.

    Returns:
        (H, W) segment ids, and the segments_info of the model.

    Raises:
        ConfigError: the model has no panoptic result.
    """
    if "panoptic_seg" not in outputs:
        raise ConfigError(
            f"the model gives no panoptic result, only {', '.join(sorted(outputs)) or 'nothing'}; "
            "leave out --save-panoptic to draw that, or use a panoptic model (for Mask2Former set "
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True)"
        )
    panoptic_seg, segments_info = outputs["panoptic_seg"]
    return panoptic_seg.cpu(), segments_info


def segments_to_draw(outputs: dict[str, Any], *, least_score: float = 0.5) -> Segments:
    """The panoptic result; of a model without one, its instances, or else its best classes.

    Args:
        outputs: of one image; with "panoptic_seg", or "instances" (scores, pred_classes,
            pred_masks of H x W), or "sem_seg" ((K, H, W) scores).
        least_score: instances below it are left out. Where two overlap, the better one is on top.
    """
    if "panoptic_seg" in outputs:
        return panoptic_result(outputs)
    if "instances" in outputs and outputs["instances"].has("pred_masks"):
        return _of_instances(outputs["instances"].to("cpu"), least_score)
    if "sem_seg" in outputs:
        classes = outputs["sem_seg"].argmax(dim=0).cpu()
        return classes + 1, [{"id": c + 1, "category_id": c} for c in classes.unique().tolist()]
    raise ConfigError(
        f"the model gives {sorted(outputs)}; expected panoptic_seg, instances with masks, or "
        "sem_seg to draw"
    )


def _of_instances(instances: Any, least_score: float) -> Segments:
    ids = torch.zeros(instances.image_size, dtype=torch.int64)
    segments = []
    # By ascending score, so that better instances overwrite worse ones.
    for row in torch.argsort(instances.scores).tolist():
        score = float(instances.scores[row])
        if score < least_score:
            continue
        ids[instances.pred_masks[row].bool()] = row + 1
        category = int(instances.pred_classes[row])
        segments.append({"id": row + 1, "category_id": category, "isthing": True, "score": score})
    visible = set(ids.unique().tolist())
    return ids, [segment for segment in segments if segment["id"] in visible]
