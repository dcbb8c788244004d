"""Mask inference step by step, as the published model does it and nothing saved."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize(masks, image_size, padded_size, output_size):
    """All masks (Q, h, w) to the padded input, cropped, to the output."""
    bilinear = {"mode": "bilinear", "align_corners": False}
    masks = F.interpolate(masks[None], padded_size, **bilinear)
    masks = masks[:, :, : image_size[0], : image_size[1]]
    return F.interpolate(masks, output_size, **bilinear)[0]


def panoptic(mask_cls, masks, things, object_mask_threshold, overlap_threshold):
    """On masks (Q, H, W) of the output size."""
    num_classes = mask_cls.shape[1] - 1
    scores, labels = mask_cls.softmax(-1).max(-1)
    masks = masks.sigmoid()
    kept = labels.ne(num_classes) & (scores > object_mask_threshold)
    scores, labels, masks = scores[kept], labels[kept], masks[kept]
    panoptic_seg = torch.zeros(masks.shape[-2:], dtype=torch.int32)
    segments: list[dict] = []
    if len(masks) == 0:
        return panoptic_seg, segments
    owner = (scores[:, None, None] * masks).argmax(0)
    stuff: dict[int, dict] = {}
    for k in range(len(masks)):
        label = int(labels[k])
        area = (owner == k).sum().item()
        original = (masks[k] >= 0.5).sum().item()
        mask = (owner == k) & (masks[k] >= 0.5)
        if area == 0 or original == 0 or mask.sum().item() == 0:
            continue
        if area / original < overlap_threshold:
            continue
        if label not in things and label in stuff:
            segment = stuff[label]
        else:
            segment = {"id": len(segments) + 1, "isthing": label in things, "category_id": label}
            segments.append(segment)
            if label not in things:
                stuff[label] = segment
        panoptic_seg[mask] = segment["id"]
    return panoptic_seg, segments


def semantic(mask_cls, masks):
    return torch.einsum("qc,qhw->chw", mask_cls.softmax(-1)[:, :-1], masks.sigmoid())


def instances(mask_cls, masks, top_k, things):
    """List of (class, score, mask), best class score first."""
    num_classes = mask_cls.shape[1] - 1
    scores = mask_cls.softmax(-1)[:, :-1].flatten()
    found = []
    for pair in scores.argsort(descending=True)[:top_k].tolist():
        query, label = divmod(pair, num_classes)
        if label not in things:
            continue
        mask = masks[query] > 0
        mean = (masks[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        found.append((label, float(scores[pair] * mean), mask))
    return found
