"""Tiny metadata of a data set, and inputs of models."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances

# Detectron2's ResNet-18 has 64 channels or more; this one is three times as fast.
NARROW_RESNET = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}
IS_THING = (False, True, True, False, True, False)


def fake_metadata(name: str, isthing: tuple[bool, ...] = IS_THING) -> None:
    """Register metadata in which things and stuff alternate: a wrong offset changes results."""
    metadata = MetadataCatalog.get(name)
    classes = [f"{'thing' if t else 'stuff'}{i}" for i, t in enumerate(isthing)]
    metadata.set(isthing=isthing, thing_classes=classes, stuff_classes=classes, ignore_label=255)


def fake_input(
    num: int = 4, size: tuple[int, int] = (96, 128), seed: int = 0, void: bool = False
) -> dict[str, Any]:
    """One mapped training image with `num` rectangles as things, with contiguous ids."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    masks = torch.zeros(num, height, width, dtype=torch.bool)
    for i in range(num):
        masks[i, 8 + 14 * i : 30 + 14 * i, 10 + 20 * i : 40 + 20 * i] = True
    things = torch.tensor([i for i, thing in enumerate(IS_THING) if thing])
    instances = Instances(size)
    instances.gt_classes = things[torch.arange(num) % len(things)]
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = (
        instances.gt_masks.get_bounding_boxes() if num else Boxes(torch.zeros(0, 4))
    )
    sem_seg = torch.randint(0, len(IS_THING), size, generator=generator)
    if void:
        sem_seg.fill_(255)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "sem_seg": sem_seg,
        "height": height,
        "width": width,
    }
