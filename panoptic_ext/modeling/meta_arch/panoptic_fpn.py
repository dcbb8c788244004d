"""Panoptic FPN (Kirillov et al., CVPR 2019) on unified class ids, with a fusion to choose.

Detectron2's PanopticFPN is built for "separated" metadata: things counted from 0 for the box head,
and one class 0 that stands for all things in the semantic head. Here the outside of the model
speaks unified ids only (0..K-1, things and stuff in one space):

    ground truth classes -> [unified -> thing index] -> RPN, RoI heads (T classes)
    RoI heads' classes   -> [thing index -> unified] -> instances, segments_info
    semantic head: K channels, one per unified class

    training: as PanopticFPN, and the losses of a fusion that has something to learn
    inference: detections and semantic logits at output resolution -> fusion -> panoptic map

Shapes: K classes, T of them things, N instances, m x m mask logits in a box, H x W pixels of one
output.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.fusion import HeuristicFusion, PanopticFusion, build_panoptic_fusion
from panoptic_ext.fusion.fusions import check_option
from panoptic_ext.modeling.backbone.folded_norm import fold_norms
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset
from panoptic_ext.modeling.roi_heads import KeepsMaskLogits
from panoptic_ext.postprocessing import with_extents

__all__ = ["UnifiedPanopticFPN"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class UnifiedPanopticFPN(MetaArchitecture, PanopticFPN):
    """Detectron2's PanopticFPN on unified class ids; a fusion merges its two outputs.

    The fusion is chosen when the model is built, so the same weights can be evaluated with each.
    """

    has_contiguous_classes: ClassVar[bool] = True
    score_threshold_key: ClassVar[str] = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    default_fusion: ClassVar[str | None] = "heuristic"
    combine_keys: ClassVar[Mapping[str, str]] = {
        "SCORE_THRESHOLD": "INSTANCES_CONFIDENCE_THRESH",
        "OVERLAP_THRESHOLD": "OVERLAP_THRESH",
        "STUFF_AREA_THRESHOLD": "STUFF_AREA_LIMIT",
    }
    needs_mask_logits: ClassVar[bool] = False
    """Whether also the heuristic merging, which pasted masks would do for, asks for logits."""

    @configurable
    def __init__(
        self,
        *,
        thing_ids: Sequence[int],
        num_classes: int,
        fusion: PanopticFusion | None = None,
        **kwargs: Any,
    ) -> None:
        """Args (all by keyword):

        thing_ids: unified id of each class of the RoI heads, in their order (T of them).
        num_classes: K.
        fusion: merges the outputs for one image into a panoptic map; None: the heuristic one, with
            PanopticFPN's `combine_...` thresholds.
        **kwargs: as `detectron2.modeling.PanopticFPN`.

        Raises:
            ConfigError: there are no things, the RoI heads have another number of classes, or no
                masks that the fusion can use.
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
        self.register_buffer("thing_ids", things, persistent=False)
        self.thing_index = thing_index  # on the CPU, where ground truth comes from
        self.fusion = fusion or HeuristicFusion(
            thing_ids=thing_ids,
            num_classes=num_classes,
            score_threshold=self.combine_instances_score_thresh,
            overlap_threshold=self.combine_overlap_thresh,
            stuff_area_threshold=self.combine_stuff_area_thresh,
        )
        self._check_mask_head()

    def _check_mask_head(self) -> None:
        """The heuristic merging needs masks, the other fusions their logits."""
        head = getattr(self.roi_heads, "mask_head", None)
        masks_do = isinstance(self.fusion, HeuristicFusion) and not self.needs_mask_logits
        is_off = head is None and not getattr(self.roi_heads, "mask_on", True)
        if is_off or not (masks_do or isinstance(head, KeepsMaskLogits)):
            raise ConfigError(
                f"{type(self).__name__} fuses mask logits ({type(self.fusion).__name__}), but the "
                f"mask head is {type(head).__name__ if head is not None else 'missing'}; set "
                "MODEL.MASK_ON True and MODEL.ROI_MASK_HEAD.NAME to SeparableMaskHead or "
                "MaskLogitsConvUpsampleHead"
            )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        ret = super().from_config(cls.with_mask_logits(cfg))
        fold_norms(ret["backbone"])
        ret["thing_ids"] = classes_of_dataset(cfg).thing_ids
        ret["num_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        ret["fusion"] = cls.build_fusion(cfg, thing_ids=ret["thing_ids"])
        return ret

    @classmethod
    def with_mask_logits(cls, cfg: Any) -> Any:
        """The config with Detectron2's mask head that also keeps logits, of the same weights."""
        if cfg.MODEL.ROI_MASK_HEAD.NAME != "MaskRCNNConvUpsampleHead":
            return cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskLogitsConvUpsampleHead"
        return cfg

    @classmethod
    def build_fusion(cls, cfg: Any, *, thing_ids: Collection[int]) -> PanopticFusion:
        """The fusion that MODEL.PANOPTIC_FUSION describes; see `combine_keys`.

        Raises:
            ConfigError: an unknown name, or a value that the fusion cannot use.
        """
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        cfg = cfg.clone()
        cfg.defrost()
        for name, key in cls.combine_keys.items():
            check_option(name.lower(), combine[key], f"MODEL.PANOPTIC_FPN.COMBINE.{key}")
            cfg.MODEL.PANOPTIC_FUSION[name] = combine[key]
        return build_panoptic_fusion(cfg, thing_ids=thing_ids, default=cls.default_fusion)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As PanopticFPN.forward, with unified ids in `instances.gt_classes` and `sem_seg`.

        Returns:
            In training a dict of scalar losses, those of the fusion included where it has any; else
            one dict per image with "sem_seg" ((K, H, W) logits), "instances" (pred_classes unified)
            and "panoptic_seg" ((H, W) int32 ids from 1, 0 void; list of segments with unified
            category_id and, as `with_extents` says, area and bbox).
        """
        if not self.training:
            return self.inference(batched_inputs)
        inputs = [self._with_thing_indices(x) for x in batched_inputs]
        if not self.fusion.wants_training:
            return super().forward(inputs)
        features: dict[str, Tensor] = {}
        handle = self.backbone.register_forward_hook(lambda *args: features.update(args[-1]))
        try:
            losses = super().forward(inputs)
        finally:
            handle.remove()
        return {**losses, **self._fusion_losses(batched_inputs, features)}

    def _with_thing_indices(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = inputs["instances"]
        fields = dict(given.get_fields())
        index = self.thing_index.to(fields["gt_classes"].device)
        fields["gt_classes"] = index[fields["gt_classes"]]
        return {**inputs, "instances": Instances(given.image_size, **fields)}

    def _fusion_losses(
        self, batched_inputs: list[dict[str, Any]], features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Losses of the fusion on what the current weights detect in the training images."""
        images = self.preprocess_image(batched_inputs)
        found = self._detect(images, {name: f.detach() for name, f in features.items()})
        return self.fusion.training_losses(
            boxes=[f.pred_boxes.tensor for f in found],
            classes=[self.thing_ids[f.pred_classes] for f in found],
            mask_logits=[_mask_logits(f) for f in found],
            image_size=[f.image_size for f in found],
            sem_seg_target=[x["sem_seg"].to(self.device) for x in batched_inputs],
        )

    @torch.no_grad()
    def _detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        predictor = getattr(self.roi_heads, "box_predictor", None)
        with (
            _evaluating(self.proposal_generator, self.roi_heads),
            # Masks of those only that the fusion will look at; early on there are hardly any.
            _at_least(predictor, "test_score_thresh", getattr(self.fusion, "score_threshold", 0.0)),
        ):
            proposals, _ = self.proposal_generator(images, features, None)
            return self.roi_heads(images, features, proposals, None)[0]

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
        """Fuse one image's raw outputs at its output resolution.

        Detectron2's `detector_postprocess` makes the other output, "instances". It works on a
        copy: it scales boxes in place and turns masks into bits, and the fusion is for logits.

        Args:
            instances: detections at network resolution, classes as thing indices, with
                `pred_masks` or `pred_mask_logits` (N, 1, m, m).
            sem_seg: (K, h, w) logits of the padded network input.
            inputs: the image's input; "height" and "width" give the output resolution in pixels.
        """
        size = instances.image_size
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        sem_seg = sem_seg_postprocess(sem_seg, size, height, width)
        boxes = instances.pred_boxes.clone()
        boxes.scale(width / size[1], height / size[0])
        boxes.clip((height, width))
        # As detector_postprocess will, so that `instance_id` counts what "instances" holds.
        there = boxes.nonempty()
        instances = instances[there]
        classes = self.thing_ids[instances.pred_classes]
        panoptic_seg = self.fusion(
            sem_seg,
            boxes=boxes.tensor[there],
            scores=instances.scores,
            classes=classes,
            mask_logits=_mask_logits(instances),
        )
        kept = dict(instances.get_fields())
        kept.pop("pred_mask_logits", None)
        kept.update(pred_boxes=instances.pred_boxes.clone(), pred_classes=classes)
        return {
            "sem_seg": sem_seg,
            "instances": detector_postprocess(Instances(size, **kept), height, width),
            "panoptic_seg": with_extents(*panoptic_seg),
        }

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Leave out what belongs to another fusion; see `AdaptsStateDict`."""
        prefix = f"{prefix}fusion."
        own = {prefix + name for name in self.fusion.state_dict()}
        for name in [n for n in state_dict if n.startswith(prefix) and n not in own]:
            logger.info("Ignoring %s of the checkpoint: it belongs to another fusion", name)
            del state_dict[name]

    def why_missing(self, missing: Collection[str]) -> str:
        """That the weights were trained without this fusion, where it has learnt parameters."""
        count = sum(name.startswith("fusion.") for name in missing)
        if not count:
            return ""
        return (
            f"The weights were trained without the fusion {type(self.fusion).__name__}, whose "
            f"{count} tensors (fusion...) are learnt: train with the same "
            "MODEL.PANOPTIC_FUSION.NAME, or choose a fusion that learns nothing"
        )


def _mask_logits(instances: Instances) -> Tensor:
    """(N, m, m) of the predicted class; from probabilities, maybe infinite, of other mask heads."""
    if instances.has("pred_mask_logits"):
        return instances.pred_mask_logits[:, 0]
    return instances.pred_masks[:, 0].logit()


@contextmanager
def _at_least(owner: Any, name: str, least: float) -> Iterator[None]:
    """A number of `owner` raised to `least`, for as long as the context lasts."""
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    setattr(owner, name, max(before, least))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """The modules in evaluation mode, for as long as the context lasts."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
