"""Panoptic FPN (Kirillov et al., CVPR 2019) on unified class ids.

Detectron2's PanopticFPN is built for "separated" metadata: things counted from 0 for the box head,
and one class 0 that stands for all things in the semantic head. Here the outside of the model
speaks unified ids only (0..K-1, things and stuff in one space):

    ground truth classes -> [unified -> thing index] -> RPN, RoI heads (T classes)
    RoI heads' classes   -> [thing index -> unified] -> instances, segments_info
    semantic head: K channels, one per unified class

Shapes: K classes, T of them things, H x W pixels of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Instances
from torch import Tensor

from ...errors import ConfigError
from ...postprocessing import with_extents
from ..backbone.folded_norm import fold_norms

__all__ = ["UnifiedPanopticFPN", "thing_ids_of_dataset"]


def thing_ids_of_dataset(cfg: Any) -> list[int]:
    """Unified ids of the thing classes of the data set that `cfg` trains (or else tests) on.

    Raises:
        ConfigError: no data set is named, or its metadata does not say what is a thing.
    """
    names = tuple(cfg.DATASETS.TRAIN) or tuple(cfg.DATASETS.TEST)
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN and DATASETS.TEST are both empty, but the model takes its thing "
            "classes from a data set; name one in either"
        )
    isthing = getattr(MetadataCatalog.get(names[0]), "isthing", None)
    if isthing is None:
        raise ConfigError(
            f"the metadata of data set {names[0]!r} has no `isthing`, which tells things from "
            "stuff in unified ids; register it with panoptic_ext.register_panoptic or in "
            "DATASETS.PANOPTIC (instances alone: panoptic_ext.data.register_instances, "
            "DATASETS.INSTANCES)"
        )
    return [i for i, thing in enumerate(isthing) if thing]


@META_ARCH_REGISTRY.register()
class UnifiedPanopticFPN(PanopticFPN):
    """Detectron2's PanopticFPN, its training and its heuristic merging, on unified class ids."""

    @configurable
    def __init__(self, *, thing_ids: Sequence[int], num_classes: int, **kwargs: Any) -> None:
        """Args (all by keyword):

        thing_ids: unified id of each class of the RoI heads, in their order (T of them).
        num_classes: K.
        **kwargs: as `detectron2.modeling.PanopticFPN`.

        Raises:
            ConfigError: there are no things, or the RoI heads have another number of classes.
        """
        super().__init__(**kwargs)
        if not thing_ids:
            raise ConfigError(
                "the data set has stuff classes only, and Panoptic FPN needs a thing to detect; "
                "use a model of Detectron2's SemanticSegmentor, or mark things in the JSON "
                "(isthing 1)"
            )
        heads = getattr(self.roi_heads, "num_classes", len(thing_ids))
        if heads != len(thing_ids):
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {heads}, but the data set has {len(thing_ids)} "
                "thing classes; leave the key out and it is derived"
            )
        things = torch.as_tensor(list(thing_ids), dtype=torch.int64)
        thing_index = torch.full((num_classes,), -1, dtype=torch.int64)
        thing_index[things] = torch.arange(len(things))
        # Detectron2's merging skips label 0 ("things"), so stuff is counted from 1 there.
        stuff_label = torch.arange(1, num_classes + 1)
        stuff_label[things] = 0
        self.register_buffer("thing_ids", things, persistent=False)
        self.thing_index = thing_index  # on the CPU, where ground truth comes from
        self.register_buffer("stuff_label", stuff_label, persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        ret = super().from_config(cfg)
        fold_norms(ret["backbone"])
        ret["thing_ids"] = thing_ids_of_dataset(cfg)
        ret["num_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return ret

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As PanopticFPN.forward, with unified ids in `instances.gt_classes` and `sem_seg`.

        Returns:
            In training a dict of scalar losses; else one dict per image with "sem_seg"
            ((K, H, W) logits), "instances" (pred_classes unified) and "panoptic_seg"
            ((H, W) int32 ids from 1, 0 void; list of segments with unified category_id and, as
            `with_extents` says, area and bbox).
        """
        if not self.training:
            return self.inference(batched_inputs)
        return super().forward([self._with_thing_indices(x) for x in batched_inputs])

    def _with_thing_indices(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = inputs["instances"]
        fields = dict(given.get_fields())
        index = self.thing_index.to(fields["gt_classes"].device)
        fields["gt_classes"] = index[fields["gt_classes"]]
        return {**inputs, "instances": Instances(given.image_size, **fields)}

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:
        """As PanopticFPN.inference; without post-processing, classes are thing indices."""
        instances, sem_seg = super().inference(batched_inputs, do_postprocess=False)
        if not do_postprocess:
            return instances, sem_seg
        return [
            self.postprocess_one(found, logits, inputs)
            for found, logits, inputs in zip(instances, sem_seg, batched_inputs, strict=True)
        ]

    def postprocess_one(
        self, instances: Instances, sem_seg: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Resize one image's raw outputs to its output resolution and merge them.

        Args:
            instances: detections at network resolution, classes as thing indices.
            sem_seg: (K, h, w) logits of the padded network input.
            inputs: the image's input; "height" and "width" give the output resolution in pixels.
        """
        size = instances.image_size
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        sem_seg = sem_seg_postprocess(sem_seg, size, height, width)
        instances = detector_postprocess(instances, height, width)
        instances.pred_classes = self.thing_ids[instances.pred_classes]
        return {
            "sem_seg": sem_seg,
            "instances": instances,
            "panoptic_seg": with_extents(*self.combine(instances, sem_seg)),
        }

    def combine(self, instances: Instances, sem_seg: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """Detectron2's heuristic merging (Kirillov et al., CVPR 2019, section 4.3).

        Args:
            instances: `scores` (N,), `pred_classes` (N,) unified, `pred_masks` (N, H, W) bool.
            sem_seg: (K, H, W) logits; pixels whose best class is a thing are left to instances.

        Returns:
            (H, W) int32 map, 0 void, and its segments with unified `category_id`.
        """
        labels = self.stuff_label[sem_seg.max(dim=0).indices]
        panoptic_seg, segments_info = combine_semantic_and_instance_outputs(
            instances,
            labels,
            self.combine_overlap_thresh,
            self.combine_stuff_area_thresh,
            self.combine_instances_score_thresh,
        )
        for segment in segments_info:
            if not segment["isthing"]:
                segment["category_id"] -= 1
        return panoptic_seg, segments_info
