"""A meta-architecture: a class for every pixel; connected pixels of a thing are one instance."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from scipy import ndimage

from panoptic_ext.config.left_out import complete_config
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset


@META_ARCH_REGISTRY.register()
class ConnectedPixels(MetaArchitecture, SemanticSegmentor):
    """Detectron2's SemanticSegmentor, whose outputs also have `panoptic_seg`."""

    has_contiguous_classes = True  # the numbers of classes are derived from the data set

    @configurable
    def __init__(self, *, thing_ids, **kwargs):
        super().__init__(**kwargs)
        self.thing_ids = thing_ids

    @classmethod
    def from_config(cls, cfg):
        cfg = complete_config(cfg, cls)  # for Detectron2's own build_model and DefaultTrainer
        return {**super().from_config(cfg), "thing_ids": classes_of_dataset(cfg).thing_ids}

    def forward(self, batched_inputs):
        outputs = super().forward(batched_inputs)
        if self.training:
            return outputs  # a dict of losses
        return [{**x, "panoptic_seg": connected(x["sem_seg"], self.thing_ids)} for x in outputs]


def connected(sem_seg, thing_ids):
    """(K, H, W) logits -> (H, W) int32 map of segment ids from 1, and the table of segments."""
    classes = sem_seg.argmax(0).cpu().numpy()
    panoptic_seg, segments = torch.zeros(classes.shape, dtype=torch.int32), []
    for category_id in sorted(set(classes.flat)):
        mask = classes == category_id
        is_thing = category_id in thing_ids
        parts, count = ndimage.label(mask) if is_thing else (mask, 1)
        for part in range(1, count + 1):
            segments.append(
                {"id": len(segments) + 1, "category_id": int(category_id), "isthing": is_thing}
            )
            panoptic_seg[torch.as_tensor(parts == part)] = len(segments)
    return panoptic_seg, segments
