"""A fusion: stuff at the bottom, then instances from the largest to the smallest."""

import torch
from detectron2.layers import paste_masks_in_image

from panoptic_ext.fusion import PANOPTIC_FUSION_REGISTRY, PanopticFusion


@PANOPTIC_FUSION_REGISTRY.register_as("small_on_top")
class SmallOnTop(PanopticFusion):
    """A small object is never hidden by a large one, whatever their scores."""

    def forward(self, sem_seg, detections):
        rule, size = self.rule, sem_seg.shape[-2:]
        layers = []  # from the bottom to the top: a mask, and what is said of its segment
        stuff_ids = torch.tensor(rule.stuff_ids, device=sem_seg.device)
        best_stuff = stuff_ids[sem_seg[stuff_ids].argmax(0)]
        for category_id in rule.stuff_ids:
            mask = best_stuff == category_id
            if mask.sum() >= rule.stuff_area_threshold:
                layers.append((mask, {"category_id": category_id, "isthing": False}))
        masks = paste_masks_in_image(detections.mask_logits.sigmoid(), detections.boxes, size)
        for i in masks.sum((1, 2)).argsort(descending=True).tolist():
            score, category_id = float(detections.scores[i]), int(detections.classes[i])
            if score >= rule.score_threshold:
                about = {"category_id": category_id, "isthing": True, "score": score}
                layers.append((masks[i], {**about, "instance_id": i}))
        panoptic_seg = torch.zeros(size, dtype=torch.int32, device=sem_seg.device)
        segments = []
        for mask, about in layers:
            segments.append({"id": len(segments) + 1, **about})
            panoptic_seg[mask] = len(segments)
        return without_hidden(panoptic_seg, segments)


def without_hidden(panoptic_seg, segments):
    """Areas in pixels, without the segments of which nothing is left, ids from 1 without a gap."""
    areas = panoptic_seg.flatten().bincount(minlength=len(segments) + 1).tolist()
    seen = [segment for segment in segments if areas[segment["id"]]]
    new_id = torch.zeros(len(areas), dtype=torch.int32, device=panoptic_seg.device)
    for number, segment in enumerate(seen, 1):
        new_id[segment["id"]] = number
    table = [{**s, "id": i, "area": areas[s["id"]]} for i, s in enumerate(seen, 1)]
    return new_id[panoptic_seg.long()], table
