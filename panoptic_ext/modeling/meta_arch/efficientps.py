"""EfficientPS (Mohan and Valada, IJCV 2021): Panoptic FPN's wiring with a fusion of logits.

    training: as UnifiedPanopticFPN, and the losses of a fusion that has something to learn
    inference: detections and semantic logits at output resolution -> fusion -> panoptic map

Shapes: K classes, T of them things, N instances, m x m mask logits in a box, H x W pixels of one
output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ...errors import ConfigError
from ...postprocessing import with_extents
from ..backbone.folded_norm import fold_norms
from ..fusion import PanopticFusion, build_panoptic_fusion
from ..roi_heads import KeepsMaskLogits
from .panoptic_fpn import UnifiedPanopticFPN

__all__ = ["EfficientPS"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class EfficientPS(UnifiedPanopticFPN):
    """RPN, RoI heads and a semantic head on one backbone; MODEL.PANOPTIC_FUSION merges them.

    The fusion is chosen when the model is built, so the same weights can be evaluated with each.
    """

    @configurable
    def __init__(self, *, fusion: PanopticFusion, **kwargs: Any) -> None:
        """Args (all by keyword):

        fusion: merges logits of one image into a panoptic map.
        **kwargs: as `UnifiedPanopticFPN`; the mask head must keep logits.

        Raises:
            ConfigError: the mask head gives no logits.
        """
        super().__init__(**kwargs)
        mask_head = getattr(self.roi_heads, "mask_head", None)
        if not isinstance(mask_head, KeepsMaskLogits):
            raise ConfigError(
                "EfficientPS fuses mask logits, but the mask head is "
                f"{type(mask_head).__name__ if mask_head else 'missing'}; set MODEL.MASK_ON True "
                "and MODEL.ROI_MASK_HEAD.NAME to SeparableMaskHead or MaskLogitsConvUpsampleHead"
            )
        self.fusion = fusion

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        ret = super().from_config(cfg)
        for part in ("sem_seg_head", "proposal_generator", "roi_heads"):
            fold_norms(ret[part])
        ret["fusion"] = build_panoptic_fusion(cfg, thing_ids=ret["thing_ids"])
        return ret

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As UnifiedPanopticFPN.forward, with the losses of the fusion where it has any."""
        if not (self.training and self.fusion.wants_training):
            return super().forward(batched_inputs)
        features: dict[str, Tensor] = {}
        handle = self.backbone.register_forward_hook(lambda *args: features.update(args[-1]))
        try:
            losses = super().forward(batched_inputs)
        finally:
            handle.remove()
        return {**losses, **self._fusion_losses(batched_inputs, features)}

    def _fusion_losses(
        self, batched_inputs: list[dict[str, Any]], features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Losses of the fusion on what the current weights detect in the training images."""
        images = self.preprocess_image(batched_inputs)
        found = self._detect(images, {name: f.detach() for name, f in features.items()})
        return self.fusion.training_losses(
            boxes=[f.pred_boxes.tensor for f in found],
            classes=[self.thing_ids[f.pred_classes] for f in found],
            mask_logits=[f.pred_mask_logits[:, 0] for f in found],
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

    def postprocess_one(
        self, instances: Instances, sem_seg: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Fuse one image's raw outputs at its output resolution.

        Detectron2's `detector_postprocess` makes the other output, "instances". It works on a
        copy: it scales boxes in place and turns masks into bits, and the fusion is for logits.

        Args:
            instances: detections at network resolution, classes as thing indices, with
                `pred_mask_logits` (N, 1, m, m).
            sem_seg: (K, h, w) logits of the padded network input.
            inputs: the image's input; "height" and "width" give the output resolution in pixels.
        """
        size = instances.image_size
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        sem_seg = sem_seg_postprocess(sem_seg, size, height, width)
        boxes = instances.pred_boxes.clone()
        boxes.scale(width / size[1], height / size[0])
        classes = self.thing_ids[instances.pred_classes]
        panoptic_seg = self.fusion(
            sem_seg,
            boxes=boxes.tensor,
            scores=instances.scores,
            classes=classes,
            mask_logits=instances.pred_mask_logits[:, 0],
        )
        kept = dict(instances.get_fields())
        del kept["pred_mask_logits"]
        kept.update(pred_boxes=instances.pred_boxes.clone(), pred_classes=classes)
        return {
            "sem_seg": sem_seg,
            "instances": detector_postprocess(Instances(size, **kept), height, width),
            "panoptic_seg": with_extents(*panoptic_seg),
        }

    def rename_old_parameters(self, weights: dict[str, Tensor], prefix: str) -> None:
        """Let weights trained with one fusion be loaded with another; edits `weights` in place.

        Called by panoptic_ext's checkpointer. What only the other fusion knows is left out; what
        this one learns and the weights lack keeps its initial value, with a warning.
        """
        prefix = f"{prefix}fusion."
        own = {prefix + name: value for name, value in self.fusion.state_dict().items()}
        for name in [n for n in weights if n.startswith(prefix) and n not in own]:
            logger.info("Ignoring %s of the checkpoint: it belongs to another fusion", name)
            del weights[name]
        missing = [name for name in own if name not in weights]
        if missing and self.state_dict().keys() & weights.keys():
            logger.warning(
                "The weights were trained without the fusion %s: its %d tensors (%s...) stay at "
                "their initial values, so it has learned nothing. Train with the same "
                "MODEL.PANOPTIC_FUSION.NAME to change that",
                type(self.fusion).__name__,
                len(missing),
                missing[0],
            )
            weights.update({name: own[name] for name in missing})


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
