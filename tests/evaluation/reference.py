"""A slow, obvious panoptic quality, and files of random data sets for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_ext.data import write_id_map

CATEGORIES = [
    {"id": 7, "name": "person", "isthing": 1},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 21, "name": "road", "isthing": 0},
]
IS_THING = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}


def segment(segment_id: int, category: int, area: int = 0, crowd: int = 0) -> dict[str, Any]:
    """An entry of segments_info."""
    return {"id": segment_id, "category_id": category, "area": area, "iscrowd": crowd}


def with_areas(ids: np.ndarray, segments: list[dict]) -> list[dict]:
    """The segments with the areas that they have in the map."""
    return [{**s, "area": int((ids == s["id"]).sum())} for s in segments]


def count_image(
    gt_ids: np.ndarray, gt: list[dict], pred_ids: np.ndarray, pred: list[dict]
) -> dict[int, list]:
    """{category: [IoU sum, TP, FP, FN]} of one image, with masks and loops over all pairs."""
    counts: dict[int, list] = {c: [0.0, 0, 0, 0] for c in IS_THING}
    matched_gt, matched_pred = set(), set()
    for g in gt:
        for p in pred:
            if g["iscrowd"] or g["category_id"] != p["category_id"]:
                continue
            in_g, in_p = gt_ids == g["id"], pred_ids == p["id"]
            both = int((in_g & in_p).sum())
            union = int(in_p.sum()) + g["area"] - both - int((in_p & (gt_ids == 0)).sum())
            if both and both / union > 0.5:
                counts[g["category_id"]][0] += both / union
                counts[g["category_id"]][1] += 1
                matched_gt.add(g["id"])
                matched_pred.add(p["id"])
    for g in gt:
        if g["id"] not in matched_gt and not g["iscrowd"]:
            counts[g["category_id"]][3] += 1
    for p in pred:
        in_p = pred_ids == p["id"]
        crowds = [g for g in gt if g["iscrowd"] and g["category_id"] == p["category_id"]]
        ignored = int((in_p & (gt_ids == 0)).sum())
        if crowds:
            ignored += int((in_p & (gt_ids == crowds[-1]["id"])).sum())
        if p["id"] not in matched_pred and ignored / int(in_p.sum()) <= 0.5:
            counts[p["category_id"]][2] += 1
    return counts


def summarize(counts: dict[int, list]) -> dict[str, dict[str, float]]:
    """{"All", "Things", "Stuff": {pq, sq, rq, n}} of summed counts."""
    groups = {"All": (True, False), "Things": (True,), "Stuff": (False,)}
    result = {}
    for name, kinds in groups.items():
        rows = []
        for category, (iou, tp, fp, fn) in counts.items():
            if IS_THING[category] in kinds and tp + fp + fn:
                weight = tp + fp / 2 + fn / 2
                rows.append((iou / weight, iou / tp if tp else 0.0, tp / weight))
        means = np.mean(rows, axis=0) if rows else [np.nan] * 3
        result[name] = dict(zip(("pq", "sq", "rq"), map(float, means), strict=True), n=len(rows))
    return result


def random_image(
    rng: np.random.Generator, shape: tuple[int, int], num: int, truth: bool
) -> tuple[np.ndarray, list[dict]]:
    """Rectangles over each other on void; some ids lack an entry or pixels in a truth."""
    ids = np.zeros(shape, np.int64)
    names = rng.choice(2**24 - 1, num, replace=False) + 1
    for name in names:
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        bottom, right = rng.integers(1, shape[0] + 1), rng.integers(1, shape[1] + 1)
        ids[top : top + bottom, left : left + right] = name
    categories = rng.choice(list(IS_THING), num)
    segments = [
        segment(int(i), int(c), crowd=int(truth and rng.random() < 0.3))
        for i, c in zip(names, categories, strict=True)
        if truth or (ids == i).any()
    ]
    if truth and num > 1 and rng.random() < 0.3:
        segments.pop()
    return ids, with_areas(ids, segments)


def write_dataset(
    root: Path, kind: str, images: list[tuple[Any, str, np.ndarray, list[dict]]]
) -> tuple[str, str]:
    """Write COCO panoptic files.

    Args:
        root: folder.
        kind: stem of the JSON and name of the PNG folder.
        images: (image_id, file name of the PNG, ids, segments_info) of each.

    Returns:
        paths of JSON and PNG folder.
    """
    png_root = root / kind
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id, name, ids, segments in images:
        path = png_root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_id_map(path, ids)
        content["images"].append(
            {
                "id": image_id,
                "file_name": name,
                "height": int(ids.shape[0]),
                "width": int(ids.shape[1]),
            }
        )
        content["annotations"].append(
            {"image_id": image_id, "file_name": name, "segments_info": segments}
        )
    path = root / f"{kind}.json"
    path.write_text(json.dumps(content))
    return str(path), str(png_root)


def random_dataset(seed: int, root: Path, num_images: int = 3) -> dict[str, Any]:
    """Random truth and prediction as files and in memory; predictions resemble the truth."""
    rng = np.random.default_rng(seed)
    gt, pred = [], []
    for i in range(num_images):
        shape = (int(rng.integers(2, 12)), int(rng.integers(2, 12)))
        name = f"folder{i % 2}/{i // 2}.png"
        ids, segments = random_image(rng, shape, int(rng.integers(0, 7)), truth=True)
        gt.append((i, name, ids, segments))
        pred_ids, pred_segments = random_image(rng, shape, int(rng.integers(0, 6)), truth=False)
        if rng.random() < 0.7:
            pred_ids, pred_segments = _disturbed(rng, ids, segments)
        pred.append((i, name, pred_ids, pred_segments))
    return {
        "gt": gt,
        "pred": pred,
        "gt_files": write_dataset(root, "gt", gt),
        "pred_files": write_dataset(root, "pred", pred),
    }


def _disturbed(
    rng: np.random.Generator, ids: np.ndarray, segments: list[dict]
) -> tuple[np.ndarray, list[dict]]:
    """The truth with a few pixels changed, new ids, and sometimes another category."""
    new = {int(i): int(v) for i, v in zip(np.unique(ids), rng.permutation(99) + 1, strict=False)}
    pred = np.vectorize(lambda i: new[i])(ids)
    noise = rng.random(ids.shape) < rng.choice([0.0, 0.1, 0.3])
    pred[noise] = rng.choice(pred.reshape(-1), int(noise.sum()))
    pred[pred == new.get(0)] = 0 if rng.random() < 0.5 else 200
    categories = {new[s["id"]]: s["category_id"] for s in segments if s["id"] in new}
    found = []
    for i in np.unique(pred[pred > 0]).tolist():
        category = categories.get(i, 21)
        found.append(
            segment(i, int(rng.choice(list(IS_THING))) if rng.random() < 0.1 else category)
        )
    return pred, with_areas(pred, found)
