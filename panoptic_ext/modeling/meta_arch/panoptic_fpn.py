"""Panoptic FPN (Kirillov et al., CVPR 2019) on contiguous class ids, with a configurable fusion.

Detectron2's PanopticFPN is built for "separated" metadata: the box head counts things from 0, and
the semantic head has one class 0 for all things. Here inputs and outputs of the model have
contiguous ids only (0..K-1, things and stuff in one space):

    ground truth classes -> [contiguous id -> thing index] -> RPN, RoI heads (T classes)
    RoI heads' classes   -> [thing index -> contiguous id] -> instances, segments_info
    semantic head: K channels, one per contiguous id

    training: as PanopticFPN, and the losses of the fusion if it has parameters
    inference: detections and semantic logits at output resolution -> fusion -> panoptic map

Shapes: K classes, T of them things, N instances, m x m mask logits in a box, H x W pixels of one
output.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor

from panoptic_ext.config.image_values import pads_black, side_of_test_batches
from panoptic_ext.config.left_out import complete_config
from panoptic_ext.errors import ConfigError, look_up
from panoptic_ext.fusion import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    HeuristicFusion,
    PanopticFusion,
    build_panoptic_fusion,
)
from panoptic_ext.fusion.base import check_threshold
from panoptic_ext.host_copies import to_device
from panoptic_ext.modeling.backbone.folded_norm import fold_norms
from panoptic_ext.modeling.layers.batch_part import size_of_batch
from panoptic_ext.modeling.layers.evaluation_mode import evaluating
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset
from panoptic_ext.modeling.meta_arch.image_batch import normalised_batch, wants_channels_last
from panoptic_ext.modeling.meta_arch.region_instances import scored_above, with_thing_indices
from panoptic_ext.modeling.meta_arch.separated_ids import (
    detectron2_channels,
    keep_classes_of_segments,
    shares_thing_channel,
    to_contiguous_channels,
)
from panoptic_ext.modeling.roi_heads import KeepsMaskLogits
from panoptic_ext.postprocessing import with_extents

__all__ = ["UnifiedPanopticFPN"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class UnifiedPanopticFPN(MetaArchitecture, PanopticFPN):
    """Detectron2's PanopticFPN on contiguous class ids; a fusion merges its two outputs.

    The fusion is chosen when the model is built, so the same weights can be evaluated with each.
    """

    has_contiguous_classes: ClassVar[bool] = True
    score_threshold_key: ClassVar[str] = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    default_fusion: ClassVar[str] = "heuristic"
    combine_keys: ClassVar[Mapping[str, str]] = {
        "SCORE_THRESHOLD": "INSTANCES_CONFIDENCE_THRESH",
        "OVERLAP_THRESHOLD": "OVERLAP_THRESH",
        "STUFF_AREA_THRESHOLD": "STUFF_AREA_LIMIT",
    }
    pads_by_config: ClassVar[bool] = True
    needs_mask_logits: ClassVar[bool] = False
    """Whether the mask head must keep logits even for a fusion that needs binary masks only."""

    @configurable
    def __init__(
        self,
        *,
        thing_ids: Sequence[int],
        num_classes: int,
        fusion: PanopticFusion | None = None,
        separated_channels: Sequence[int] | None = None,
        pad_black: bool = False,
        test_square: int = 0,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """Args (all by keyword):

        thing_ids: contiguous id of each class of the RoI heads, in their order (T of them).
        num_classes: K.
        fusion: merges the outputs for one image into a panoptic map; None: the heuristic one, with
            PanopticFPN's `combine_...` thresholds.
        separated_channels: for each contiguous id its channel in the semantic head of Detectron2's
            own PanopticFPN, whose weights are then loaded, too; see `separated_ids`.
        pad_black: see `normalised_batch`.
        test_square: side that test batches are padded to, pixels; 0: as the backbone needs it.
        channels_last: see `normalised_batch`.
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
        count = getattr(self.roi_heads, "num_classes", len(thing_ids))
        if count != len(thing_ids):
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {count}, but the data set has {len(thing_ids)} "
                "thing classes; leave the key out and it is derived"
            )
        # Both tables are derived from the data set, so that no checkpoint has to hold them.
        things = torch.as_tensor(list(thing_ids), dtype=torch.int64)
        thing_index = torch.full((num_classes,), -1, dtype=torch.int64)
        thing_index[things] = torch.arange(len(things))
        self.register_buffer("thing_ids", things, persistent=False)
        self.separated_channels = separated_channels
        self.pad_black = pad_black
        self.test_square = test_square
        if hasattr(self.backbone, "bottom_up"):
            # The pyramid on a pretrained backbone begins at random, as the heads do.
            self.backbone_prefixes = ("backbone.bottom_up.",)
        self.channels_last = channels_last
        self.thing_index = thing_index  # on the CPU, where ground truth comes from
        self.fusion = fusion or HeuristicFusion(
            FusionRule(
                thing_ids,
                num_classes,
                score_threshold=self.combine_instances_score_thresh,
                overlap_threshold=self.combine_overlap_thresh,
                stuff_area_threshold=self.combine_stuff_area_thresh,
            )
        )
        self._check_mask_head()

    def _check_mask_head(self) -> None:
        """Raise ConfigError if the fusion cannot use what the mask head returns."""
        head = getattr(self.roi_heads, "mask_head", None)
        needs_logits = self.fusion.needs_mask_logits or self.needs_mask_logits
        is_off = head is None and not getattr(self.roi_heads, "mask_on", True)
        if is_off or (needs_logits and not isinstance(head, KeepsMaskLogits)):
            raise ConfigError(
                f"{type(self).__name__} fuses mask logits ({type(self.fusion).__name__}), but the "
                f"mask head is {type(head).__name__ if head is not None else 'missing'}; set "
                "MODEL.MASK_ON True and MODEL.ROI_MASK_HEAD.NAME to SeparableMaskHead or "
                "MaskLogitsConvUpsampleHead"
            )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        cfg = complete_config(cfg, cls)
        ret = super().from_config(cls.with_mask_logits(cfg))
        fold_norms(ret["backbone"])
        dataset = classes_of_dataset(cfg)
        ret["thing_ids"] = dataset.thing_ids
        ret["separated_channels"] = detectron2_channels(dataset)
        ret["num_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        ret["fusion"] = cls.build_fusion(cfg, thing_ids=ret["thing_ids"])
        ret["pad_black"] = pads_black(cfg)
        ret["test_square"] = side_of_test_batches(cfg)
        ret["channels_last"] = wants_channels_last(cfg)
        return ret

    @classmethod
    def with_mask_logits(cls, cfg: Any) -> Any:
        """The config with our mask head in place of Detectron2's: the same weights, logits kept."""
        if cfg.MODEL.ROI_MASK_HEAD.NAME != "MaskRCNNConvUpsampleHead":
            return cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskLogitsConvUpsampleHead"
        return cfg

    @classmethod
    def build_fusion(cls, cfg: Any, *, thing_ids: Collection[int]) -> PanopticFusion:
        """Build the fusion that MODEL.PANOPTIC_FUSION describes; see `combine_keys`.

        Raises:
            ConfigError: an unknown name, or a value that the fusion cannot use.
        """
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        cfg = cfg.clone()
        cfg.defrost()
        for name, key in cls.combine_keys.items():
            check_threshold(name.lower(), combine[key], f"MODEL.PANOPTIC_FPN.COMBINE.{key}")
            cfg.MODEL.PANOPTIC_FUSION[name] = combine[key]
        return build_panoptic_fusion(cfg, thing_ids=thing_ids, default=cls.default_fusion)

    @classmethod
    def score_threshold_key_for(cls, cfg: Any) -> str:
        """Key of the score threshold of the fusion that is configured; upsnet has its own."""
        name = cfg.MODEL.PANOPTIC_FUSION.NAME or cls.default_fusion
        fusion = look_up(PANOPTIC_FUSION_REGISTRY, "MODEL.PANOPTIC_FUSION.NAME", name)
        key = fusion.rule_keys["score_threshold"]
        if key == PanopticFusion.rule_keys["score_threshold"]:
            return cls.score_threshold_key
        return f"MODEL.PANOPTIC_FUSION.{key}"

    @staticmethod
    def gives_semantic_alone(cfg: Any) -> bool:
        """False: it has detections, too."""
        return False

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses or panoptic maps of a batch.

        Args:
            batched_inputs: one dict per image, as PanopticDatasetMapper makes them: "image"
                ((3, h, w)); "height" and "width" of the output; in training also "instances"
                (gt_classes are contiguous ids) and "sem_seg" ((h, w) contiguous ids).

        Returns:
            In training a dict of scalar losses, with those of the fusion if it has any; else one
            dict per image with "sem_seg" ((K, H, W) logits; where all things share one, it is -inf
            outside of a thing's segments), "instances" (pred_classes are
            contiguous ids) and "panoptic_seg" ((H, W) int32 ids from 1, 0 void; list of segments
            with contiguous category_id and, as `with_extents` says, area and bbox).
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        sem_seg = self._semantic_targets(images, batched_inputs)
        _, semantic_losses = self.sem_seg_head(features, sem_seg)
        instances = [
            with_thing_indices(x["instances"], self.thing_index, self.device)
            for x in batched_inputs
        ]
        proposals, proposal_losses = self.proposal_generator(images, features, instances)
        _, detector_losses = self.roi_heads(images, features, proposals, instances)
        losses = {**semantic_losses, **proposal_losses, **detector_losses}
        if self.fusion.wants_training:
            losses.update(self._fusion_losses(images, features, sem_seg))
        return losses

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size; see `normalised_batch`."""
        # Detectron2 main's backbones may ask for a square, in training, too.
        square = getattr(self.backbone, "padding_constraints", {}).get("square_size", 0)
        return normalised_batch(
            [to_device(x["image"], self.device) for x in batched_inputs],
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=self.backbone.size_divisibility,
            pad_black=self.pad_black,
            square=square if self.training else max(square, self.test_square),
            channels_last=self.channels_last,
            least_size=size_of_batch(),
        )

    def _semantic_targets(self, images: ImageList, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """(B, h, w) labels, padded with void to the size of the batch of images."""
        height, width = images.tensor.shape[-2:]
        labels = [to_device(x["sem_seg"], self.device) for x in batched_inputs]
        void = self.sem_seg_head.ignore_value
        return torch.stack(
            [F.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]), value=void) for x in labels]
        )

    def _fusion_losses(
        self, images: ImageList, features: dict[str, Tensor], sem_seg: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the fusion on the detections of the current weights in the training images."""
        detected = self._detect(images, features)
        return self.fusion.training_losses(
            detections=[self._detections(x, x.pred_boxes.tensor) for x in detected],
            image_size=[x.image_size for x in detected],
            sem_seg_target=sem_seg,
        )

    @torch.no_grad()
    def _detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Detections of the current weights with a score above the fusion's threshold."""
        least_score = self.fusion.rule.score_threshold
        with evaluating(self.proposal_generator, self.roi_heads):
            proposals, _ = self.proposal_generator(images, features, None)
            if not isinstance(self.roi_heads, StandardROIHeads):
                detected, _ = self.roi_heads(images, features, proposals, None)
                return [scored_above(x, least_score) for x in detected]
            # Masks are predicted after the selection by score, because they are the costly part,
            # and early in training hardly any detection reaches the threshold.
            detected = self.roi_heads._forward_box(features, proposals)
            detected = [scored_above(x, least_score) for x in detected]
            return self.roi_heads.forward_with_given_boxes(features, detected)

    def _detections(self, instances: Instances, boxes: Tensor) -> Detections:
        """Input of the fusion, from the RoI heads' output and (N, 4) boxes in output pixels."""
        return Detections(
            boxes=boxes,
            scores=instances.scores,
            classes=self.thing_ids[instances.pred_classes],
            mask_logits=_mask_logits(instances),
        )

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:
        """As PanopticFPN.inference; without post-processing, classes are thing indices."""
        instances, sem_seg = super().inference(batched_inputs, do_postprocess=False)
        if not do_postprocess:
            return instances, sem_seg
        return [
            self.postprocess_one(of_image, logits, inputs)
            for of_image, logits, inputs in zip(instances, sem_seg, batched_inputs, strict=True)
        ]

    def postprocess_one(
        self, instances: Instances, sem_seg: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Fuse one image's raw outputs at its output resolution.

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
        # detector_postprocess discards empty boxes. Discarding them here, too, makes `instance_id`,
        # an index of the fusion's detections, an index of "instances".
        rows = boxes.nonempty().nonzero()[:, 0]
        instances = instances[rows]
        detections = self._detections(instances, boxes.tensor[rows])
        panoptic_seg = self.fusion(sem_seg, detections)
        may_share = self.separated_channels is not None
        if may_share and shares_thing_channel(self.sem_seg_head, self.thing_ids):
            keep_classes_of_segments(sem_seg, panoptic_seg, self.thing_ids)
        fields = dict(instances.get_fields())
        # detector_postprocess gets copies: it scales boxes in place.
        fields.pop("pred_mask_logits", None)
        fields.update(pred_boxes=instances.pred_boxes.clone(), pred_classes=detections.classes)
        return {
            "sem_seg": sem_seg,
            "instances": detector_postprocess(Instances(size, **fields), height, width),
            "panoptic_seg": with_extents(*panoptic_seg),
        }

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Take weights of separated ids, and remove the parameters of another fusion.

        See `AdaptsStateDict`.
        """
        if self.separated_channels is not None:
            predictor = f"{prefix}sem_seg_head.predictor."
            to_contiguous_channels(state_dict, predictor, self.separated_channels)
        prefix = f"{prefix}fusion."
        expected = {prefix + name for name in self.fusion.state_dict()}
        for name in [n for n in state_dict if n.startswith(prefix) and n not in expected]:
            logger.info("Ignoring %s of the checkpoint: it belongs to another fusion", name)
            del state_dict[name]

    def why_missing(self, missing: Collection[str]) -> str:
        """Report weights that were trained without this fusion, if it has parameters."""
        count = sum(name.startswith("fusion.") for name in missing)
        if not count:
            return ""
        return (
            f"The weights were trained without the fusion {type(self.fusion).__name__}, whose "
            f"{count} tensors (fusion...) are learnt: train with the same "
            "MODEL.PANOPTIC_FUSION.NAME, or choose a fusion that learns nothing"
        )


def _mask_logits(instances: Instances) -> Tensor:
    """(N, m, m) mask logits of the predicted class.

    Other mask heads return probabilities. Their logits are infinite where these are 0 or 1.
    """
    if instances.has("pred_mask_logits"):
        return instances.pred_mask_logits[:, 0]
    return instances.pred_masks[:, 0].logit()
