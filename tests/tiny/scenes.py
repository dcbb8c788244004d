"""Two scenes that a model overfits, and the panoptic quality of what it found in them."""

from __future__ import annotations

import torch
from detectron2.structures import Instances

from tests.tiny.model_inputs import IS_THING

__all__ = ["SIZE", "panoptic_quality", "scene"]

SIZE = (96, 128)


def scene(seed):
    """Two stuff regions under rectangles of the three thing classes, each class its colour."""
    generator = torch.Generator().manual_seed(seed)
    height = SIZE[0]
    classes = [0, 3]
    ids = torch.ones(SIZE, dtype=torch.int32)
    ids[height // 2 + 8 * seed :] = 2
    for i, (y, x) in enumerate([(6, 8), (10, 50), (58, 20), (54, 78), (8, 92)]):
        classes.append((1, 2, 4)[(i + seed) % 3])
        side = int(torch.randint(20, 34, (1,), generator=generator))
        ids[y : y + side, x : x + side] = i + 3
    ids[-6:] = 0
    rows = Instances(SIZE)
    rows.gt_classes = torch.tensor(classes)
    rows.gt_isthing = torch.tensor([IS_THING[c] for c in classes])
    rows.gt_iscrowd = torch.zeros(len(classes), dtype=torch.bool)
    palette = torch.randint(0, 256, (6, 3), generator=torch.Generator().manual_seed(9))
    colours = torch.cat([torch.zeros(1, 3, dtype=torch.int64), palette[rows.gt_classes]])
    noise = torch.randint(-20, 21, (3, *SIZE), generator=generator)
    image = (colours[ids.long()].permute(2, 0, 1) + noise).clamp(0, 255).to(torch.uint8)
    return {"image": image, "panoptic_ids": ids, "segments": rows}


def panoptic_quality(outputs, scenes):
    """PQ over classes, by its definition: IoU above 0.5 is a match, void counts for nothing."""
    table = {}
    for output, truth in zip(outputs, scenes, strict=True):
        panoptic, segments = output["panoptic_seg"]
        known = truth["panoptic_ids"] > 0
        found = [(s["category_id"], (panoptic == s["id"]) & known) for s in segments]
        wanted = [
            (int(c), truth["panoptic_ids"] == i + 1)
            for i, c in enumerate(truth["segments"].gt_classes)
        ]
        for category in range(len(IS_THING)):
            ours = [mask for c, mask in found if c == category]
            theirs = [mask for c, mask in wanted if c == category]
            ious = [float((a & b).sum() / (a | b).sum()) for a in ours for b in theirs]
            matched = [iou for iou in ious if iou > 0.5]
            total, missed = table.get(category, (0.0, 0.0))
            table[category] = total + sum(matched), missed + (len(ours) + len(theirs)) / 2
    return 100 * sum(a / b for a, b in table.values() if b) / sum(b > 0 for _, b in table.values())
