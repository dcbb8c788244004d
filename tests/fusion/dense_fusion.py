"""Slow, obvious fusions: N x H x W stacks, float64, whole images; and random cases for them.

Nothing here is shared with panoptic_ext.fusion but the types of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from panoptic_ext.fusion import Detections, FusionRule, PanopticMap

VOID = -1


@dataclass
class Case:
    """Arguments of a fusion. Things need not come first, nor last."""

    sem_seg: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    mask_logits: Tensor
    thing_ids: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def instances(self) -> dict[str, Tensor]:
        names = ("boxes", "scores", "classes", "mask_logits")
        return {name: getattr(self, name) for name in names}

    @property
    def detections(self) -> Detections:
        return Detections(**self.instances)

    @property
    def rule(self) -> FusionRule:
        options = {name: self.options[name] for name in DEFAULTS if name in self.options}
        return FusionRule(self.thing_ids, len(self.sem_seg), **options)

    @property
    def own_options(self) -> dict[str, Any]:
        """Those of one fusion alone."""
        return {name: value for name, value in self.options.items() if name not in DEFAULTS}

    def fuse(self, fusion: Callable[..., PanopticMap]) -> PanopticMap:
        return fusion(self.sem_seg, self.detections, self.rule, **self.own_options)

    @property
    def stuff_ids(self) -> list[int]:
        return [k for k in range(len(self.sem_seg)) if k not in self.thing_ids]

    def to(self, *args: Any) -> Case:
        """On another device, or with another type of logits and scores."""
        moved = {n: t.to(*args) for n, t in self.instances.items() if t.is_floating_point()}
        if not isinstance(args[0], torch.dtype):
            moved["classes"] = self.classes.to(*args)
        else:
            moved["boxes"] = self.boxes
        return replace(self, sem_seg=self.sem_seg.to(*args), **moved)


@dataclass
class Dense:
    """A dense result; `margin` is the lead of the winner, (H, W)."""

    panoptic_seg: Tensor
    segments: list[dict[str, Any]]
    margin: Tensor


def paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits over the whole image, the outermost cells going on for ever; and where the box is."""
    x1, y1, x2, y2 = box.double()
    y, x = (torch.arange(n, dtype=torch.float64, device=mask.device) + 0.5 for n in size)
    inside = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
    if not inside.any():
        return torch.zeros(size, dtype=torch.float64, device=mask.device), inside
    places = torch.meshgrid(
        (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1, indexing="ij"
    )
    grid = torch.stack(places[::-1], -1)[None]
    image = F.grid_sample(
        mask[None, None].double(), grid, padding_mode="border", align_corners=False
    )
    return image[0, 0], inside


def by_score(case: Case, score_threshold: float) -> list[int]:
    scores = case.scores.double().tolist()
    good = [i for i, score in enumerate(scores) if score >= score_threshold]
    return sorted(good, key=lambda i: -scores[i])


def prune(case: Case, order: list[int], threshold: float, *, per_class: bool) -> list[tuple]:
    """(index, logits, inside) of the instances that overlap the kept ones little enough."""
    size = tuple(case.sem_seg.shape[1:])
    unions: dict[int, Tensor] = {}
    kept = []
    for i in order:
        logits, inside = paste(case.mask_logits[i], case.boxes[i], size)
        mask = (logits > 0) & inside
        key = int(case.classes[i]) if per_class else 0
        union = unions.get(key, torch.zeros_like(mask))
        if mask.any() and (mask & union).sum().item() / mask.sum().item() <= threshold:
            unions[key] = union | mask
            kept.append((i, logits, inside))
    return kept


def argmax(stack: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """First of the largest per pixel, VOID in an empty stack; and its lead."""
    if not stack:
        return torch.full(size, VOID), torch.full(size, torch.inf)
    values = torch.stack(stack).cpu().numpy()
    ordered = np.sort(values, 0)
    with np.errstate(invalid="ignore"):
        lead = ordered[-1] - ordered[-2] if len(stack) > 1 else np.full(size, np.inf)
    winner = np.where(np.isneginf(ordered[-1]), VOID, values.argmax(0))
    return torch.from_numpy(winner), torch.from_numpy(np.nan_to_num(lead, nan=np.inf))


def assemble(
    case: Case, instance: Tensor, stuff: Tensor, order: list[int], margin: Tensor
) -> Dense:
    """From (H, W) index of the instance and contiguous id of stuff, VOID where none."""
    result = torch.zeros(instance.shape, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    for i in order:
        if area := int((instance == i).sum()):
            result[instance == i] = len(segments) + 1
            segments.append(
                {
                    "id": len(segments) + 1,
                    "isthing": True,
                    "category_id": int(case.classes[i]),
                    "score": float(case.scores[i]),
                    "instance_id": i,
                    "area": area,
                }
            )
    for label in case.stuff_ids:
        here = (stuff == label) & (instance == VOID)
        area = int(here.sum())
        if area and area >= case.options["stuff_area_threshold"]:
            result[here] = len(segments) + 1
            segments.append(
                {"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area}
            )
    return Dense(result, segments, margin)


def semantic_fill(case: Case) -> Tensor:
    """Contiguous id of stuff for pixels without an instance, VOID by the policy."""
    sem_seg, size = case.sem_seg.double(), tuple(case.sem_seg.shape[1:])
    ids = case.stuff_ids  # a tie goes to stuff
    if not ids:
        return torch.full(size, VOID)
    if case.options["void_policy"] == "void":
        ids = ids + list(case.thing_ids)
    winner, _ = argmax([sem_seg[k] for k in ids], size)
    labels = torch.tensor(ids)[winner]
    return torch.where(torch.isin(labels, torch.tensor(case.stuff_ids)), labels, VOID)


def hadamard(case: Case) -> Dense:
    """Steps 1 to 6 of EfficientPS."""
    options, sem_seg = case.options, case.sem_seg.double()
    size = tuple(sem_seg.shape[1:])
    order = by_score(case, options["score_threshold"])
    kept = prune(case, order, options["overlap_threshold"], per_class=False)
    stack = [sem_seg[k] for k in case.stuff_ids]
    for i, logits, inside in kept:
        mla, mlb = logits * options["instance_logit_scale"], sem_seg[case.classes[i]]
        fused = (1 / (1 + torch.exp(-mla)) + 1 / (1 + torch.exp(-mlb))) * (mla + mlb)
        stack.append(torch.where(inside, fused, -torch.inf))
    winner, margin = argmax(stack, size)
    first = len(case.stuff_ids)
    index = torch.tensor([VOID] * first + [i for i, _, _ in kept] + [VOID])  # last for VOID itself
    instance = index[winner]
    return assemble(case, instance, semantic_fill(case), [i for i, _, _ in kept], margin)


def upsnet(case: Case) -> Dense:
    """The stack [stuff, instances, unknown]; an instance is -inf outside its box."""
    options, sem_seg = case.options, case.sem_seg.double()
    size = tuple(sem_seg.shape[1:])
    order = suppress(case, by_score(case, options["score_threshold"]), options["nms_threshold"])
    order.sort(key=lambda i: int(case.classes[i]))
    kept = prune(case, order, options["overlap_threshold"], per_class=True)
    stack = [sem_seg[k] for k in case.stuff_ids]
    explained = []
    for i, logits, inside in kept:
        semantic = sem_seg[case.classes[i]]
        stack.append(torch.where(inside, semantic + logits, -torch.inf))
        explained.append(torch.where(inside, semantic, 0.0))
    if case.thing_ids:
        things = sem_seg[list(case.thing_ids)].amax(0)
        stack.append(things - torch.stack(explained).amax(0) if explained else things)
    winner, margin = argmax(stack, size)
    first, found = len(case.stuff_ids), [i for i, _, _ in kept]
    index = torch.tensor([VOID] * first + found + [VOID, VOID])
    unknown = winner >= first + len(found)
    stuff, _ = argmax(stack[:first], size)
    labels = torch.tensor([*case.stuff_ids, VOID])[stuff]
    if options["void_policy"] == "void":
        labels = torch.where(unknown, VOID, labels)
    return assemble(case, index[winner], labels, found, margin)


def suppress(case: Case, order: list[int], threshold: float) -> list[int]:
    """Greedy non-maximum suppression, boxes that hold no pixel left out before."""
    size = tuple(case.sem_seg.shape[1:])
    kept: list[int] = []
    for i in order:
        if not paste(case.mask_logits[i], case.boxes[i], size)[1].any():
            continue
        if all(iou(case.boxes[i], case.boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a: Tensor, b: Tensor) -> float:
    (ax, ay, ar, ab), (bx, by, br, bb) = a.tolist(), b.tolist()
    common = max(0.0, min(ar, br) - max(ax, bx)) * max(0.0, min(ab, bb) - max(ay, by))
    return common / ((ar - ax) * (ab - ay) + (br - bx) * (bb - by) - common)


def check(found: tuple[Tensor, list[dict[str, Any]]], expected: Dense) -> None:
    """Equal, but for pixels that rounding may give to either of two.

    A segment may be on one side only if such pixels are all it has. What both sides have is equal
    in all but the area, which is that of the map (`check_consistent`).
    """
    panoptic_seg, segments = found
    assert panoptic_seg.dtype == torch.int32
    check_consistent(panoptic_seg.cpu(), segments)
    wanted = {identity(s): s["id"] for s in expected.segments}
    table = torch.tensor([0] + [wanted.get(identity(s), VOID) for s in segments])
    differ = table[panoptic_seg.cpu().long()] != expected.panoptic_seg
    assert not (differ & (expected.margin > 1e-4)).any()
    if not differ.any():
        assert segments == expected.segments
    common = wanted.keys() & {identity(s) for s in segments}
    ours, theirs = (
        [{**s, "id": None, "area": None} for s in side if identity(s) in common]
        for side in (segments, expected.segments)
    )
    assert ours == theirs


def identity(segment: dict[str, Any]) -> tuple[bool, int]:
    """What a segment is, whatever its id: an instance of the arguments, or a class of stuff."""
    thing = segment["isthing"]
    return thing, segment["instance_id" if thing else "category_id"]


def check_consistent(panoptic_seg: Tensor, segments: list[dict[str, Any]]) -> None:
    """Map and list of segments say the same; ids count from 1."""
    ids, areas = panoptic_seg.unique(return_counts=True)
    areas_by_id = {s["id"]: s["area"] for s in segments}
    assert areas_by_id == {i: n for i, n in zip(ids.tolist(), areas.tolist(), strict=True) if i}
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    keys = {"id", "isthing", "category_id", "area"}
    for segment in segments:
        assert set(segment) == (keys | {"score", "instance_id"} if segment["isthing"] else keys)


DEFAULTS: dict[str, Any] = {
    "score_threshold": 0.5,
    "overlap_threshold": 0.5,
    "stuff_area_threshold": 4,
    "void_policy": "void",
}


def make_case(
    seed: int,
    count: int,
    *,
    size: tuple[int, int] = (20, 24),
    stuff: int = 3,
    things: int = 3,
    whole_logits: bool = False,
    best_score: float = 1.0,
    **options: Any,
) -> Case:
    """Random logits; boxes of all sorts, of which some are empty, outside or on pixel centres."""
    rng = np.random.default_rng(seed)
    classes = stuff + things
    sem_seg = rng.normal(0, 4, (classes, *size)).astype(np.float32)
    if whole_logits:  # many ties
        sem_seg = sem_seg.round() / 2
    corner = rng.uniform(-0.3, 1.0, (count, 2)) * size[::-1]
    extent = rng.uniform(0, 0.8, (count, 2)) * size[::-1]
    boxes = np.concatenate((corner, corner + extent), 1)
    kind = rng.integers(0, 8, (count, 1))
    boxes = np.where(kind == 0, boxes.round() + 0.5, boxes)
    boxes = np.where(kind == 1, boxes.round(), boxes)
    boxes[kind[:, 0] == 2, 2] = boxes[kind[:, 0] == 2, 0]  # no area
    boxes = np.where(kind == 3, boxes + np.tile(size[::-1], 2), boxes)
    mask_logits = rng.normal(0.5, 4, (count, 7, 7))
    mask_logits *= rng.choice([0.1, 1.0, 10.0], (count, 1, 1))
    thing_ids = tuple(sorted(rng.permutation(classes)[:things].tolist()))
    return Case(
        sem_seg=torch.from_numpy(sem_seg),
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.from_numpy((best_score * rng.integers(3, 11, count) / 10).astype(np.float32)),
        classes=torch.from_numpy(rng.choice(thing_ids or (0,), count)).long(),
        mask_logits=torch.from_numpy(mask_logits.astype(np.float32)),
        thing_ids=thing_ids,
        options={**DEFAULTS, **options},
    )


def scene(
    sem_seg: Any,
    instances: Sequence[tuple[Sequence[float], int, float]] = (),
    things: Sequence[int] = (1,),
    **options: Any,
) -> Case:
    """From (K, H, W) nested logits and (box, class, constant mask logit) by falling score."""
    return Case(
        sem_seg=torch.tensor(sem_seg, dtype=torch.float32),
        boxes=torch.tensor([box for box, _, _ in instances], dtype=torch.float32).view(-1, 4),
        scores=torch.linspace(0.9, 0.6, max(1, len(instances)))[: len(instances)],
        classes=torch.tensor([label for _, label, _ in instances], dtype=torch.int64),
        mask_logits=torch.tensor([x for _, _, x in instances]).view(-1, 1, 1).expand(-1, 28, 28),
        thing_ids=tuple(things),
        options={**DEFAULTS, "stuff_area_threshold": 1, **options},
    )


@st.composite
def cases(draw: Any, **options: st.SearchStrategy[Any]) -> Case:
    """Random cases, `options` beside the common ones."""
    stuff = draw(st.integers(0, 4))
    things = draw(st.integers(0 if stuff else 1, 4))
    drawn = {name: draw(strategy) for name, strategy in options.items()}
    return make_case(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 8)) if things else 0,
        size=(draw(st.integers(1, 24)), draw(st.integers(1, 24))),
        stuff=stuff,
        things=things,
        whole_logits=draw(st.booleans()),
        overlap_threshold=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        stuff_area_threshold=draw(st.sampled_from([0, 1, 10, 1000])),
        void_policy=draw(st.sampled_from(["void", "stuff"])),
        **drawn,
    )
