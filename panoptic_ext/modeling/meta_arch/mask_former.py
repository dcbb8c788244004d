"""Mask2Former (Cheng et al., CVPR 2022): backbone, mask-classification head, loss and inference.

Shapes: B images, Q queries, K classes of the data set, H x W an image's output size. Classes are
unified ids outside; an instance-only model may count its things alone, from 0 (`class_ids`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.folded_norm import fold_norms
from panoptic_ext.modeling.mask_classification.build_criterion import (
    build_criterion,
    build_semantic_classifier,
)
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.losses import box_loss, centre_loss, semantic_loss
from panoptic_ext.modeling.mask_classification.placed_criterion import centre_map, outside_target
from panoptic_ext.modeling.mask_classification.targets import TASKS, MaskTargets, build_mask_targets
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset
from panoptic_ext.modeling.meta_arch.mask_former_head import takes_dense
from panoptic_ext.postprocessing import (
    MaskOutputs,
    Sizes,
    mask_inference,
    panoptic_with_stuff,
    semantic_scores,
    with_extents,
)

__all__ = ["PanopticExtMaskFormer", "task_of"]


def task_of(cfg: Any) -> str:
    """What the targets of training are: "instance" or "semantic" where INPUT.PANOPTIC_TARGETS
    names this one alone, else "panoptic"."""
    alone = {("instances",): "instance", ("sem_seg",): "semantic"}
    return alone.get(tuple(cfg.INPUT.PANOPTIC_TARGETS), "panoptic")


@META_ARCH_REGISTRY.register()
class PanopticExtMaskFormer(MetaArchitecture, nn.Module):
    """One model for panoptic, instance and semantic segmentation."""

    has_contiguous_classes: ClassVar[bool] = True
    score_threshold_key: ClassVar[str] = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
    default_fusion: ClassVar[str | None] = ""  # it takes none

    pixel_mean: Tensor
    pixel_std: Tensor
    class_ids: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        class_ids: Sequence[int],
        thing_ids: Sequence[int],
        num_dataset_classes: int,
        task: str = "panoptic",
        ignore_value: int = 255,
        deep_supervision: bool = True,
        semantic_classifier: nn.Module | None = None,
        semantic_loss_weight: float = 1.0,
        centre_loss_weight: float = 1.0,
        semantic_on: bool = False,
        instance_on: bool = False,
        panoptic_on: bool = True,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        resize_before_semantic: bool = False,
        max_instances: int = 100,
        stuff_area_threshold: float = 0,
    ) -> None:
        """Args (all by keyword):

        backbone: image (B, 3, h, w) -> features by name.
        sem_seg_head: features -> "pred_logits", "pred_masks", "aux_outputs", and what else
            `TRANSFORMER_DECODER_REGISTRY` names.
        criterion: losses, and in `weight_dict` what each counts.
        pixel_mean, pixel_std: of each channel, grey levels.
        size_divisibility: batches are padded to a multiple of this many pixels.
        class_ids: the unified id of each class of the head.
        thing_ids: unified ids of the thing classes.
        num_dataset_classes: K.
        task: targets of training, see `build_mask_targets`.
        ignore_value: void in the ground truth "sem_seg".
        deep_supervision: also apply the losses to the predictions before the last layer.
        semantic_classifier: mask_features -> logits of an auxiliary semantic loss in training;
            None: no such loss, unless the head gives "semantic_logits".
        semantic_loss_weight: its weight.
        centre_loss_weight: weight of the loss of object centres, where the head looks for them.
        semantic_on, instance_on, panoptic_on: outputs of inference.
        object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        resize_before_semantic: resize masks to the output before classes are summed up; else
            after, as far as no other output needs them.
        max_instances: best instances that are kept of an image.
        stuff_area_threshold: see `panoptic_with_stuff`; of heads that give "semantic_logits".
        """
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {TASKS}")
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.task = task
        self.ignore_value = ignore_value
        self.deep_supervision = deep_supervision
        self.semantic_classifier = semantic_classifier
        # Each layer looks at one of three levels: with fewer layers some are never looked at.
        predictor = getattr(sem_seg_head, "predictor", None)
        self.find_unused_parameters = getattr(predictor, "num_layers", 3) < 3
        self.semantic_loss_weight = semantic_loss_weight
        self.centre_loss_weight = centre_loss_weight
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.resize_before_semantic = resize_before_semantic or instance_on or panoptic_on
        self.max_instances = max_instances
        self.stuff_area_threshold = stuff_area_threshold
        self.register_buffer("pixel_mean", _column(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", _column(pixel_std), persistent=False)
        ids = torch.as_tensor(list(class_ids), dtype=torch.int64)
        self.class_index = torch.full((num_dataset_classes,), -1, dtype=torch.int64)
        self.class_index[ids] = torch.arange(len(ids))
        self.renamed_classes = bool((self.class_index != torch.arange(num_dataset_classes)).any())
        self.register_buffer("class_ids", ids, persistent=False)
        things = set(thing_ids)
        self.thing_classes = {i for i, unified in enumerate(class_ids) if unified in things}

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        backbone = fold_norms(build_backbone(cfg))
        keys = cfg.MODEL.MASK_FORMER
        divisibility = keys.SIZE_DIVISIBILITY
        head = build_sem_seg_head(cfg, backbone.output_shape())
        classes = _classes_of_head(cfg)
        has_stuff = len(classes["class_ids"]) > len(classes["thing_ids"])
        has_stuff &= task_of(cfg) != "instance"
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": divisibility if divisibility >= 0 else backbone.size_divisibility,
            **classes,
            "task": task_of(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "deep_supervision": keys.DEEP_SUPERVISION,
            "semantic_classifier": build_semantic_classifier(cfg, head, has_stuff),
            "semantic_loss_weight": keys.SEMANTIC_LOSS_WEIGHT,
            "centre_loss_weight": keys.CENTRE_LOSS_WEIGHT,
            "semantic_on": keys.TEST.SEMANTIC_ON,
            "instance_on": keys.TEST.INSTANCE_ON,
            "panoptic_on": keys.TEST.PANOPTIC_ON,
            "object_mask_threshold": keys.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": keys.TEST.OVERLAP_THRESHOLD,
            "resize_before_semantic": keys.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "stuff_area_threshold": cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT,
        }

    @staticmethod
    def head_classes(cfg: Any, num_classes: int, num_things: int) -> int:
        """What MODEL.SEM_SEG_HEAD.NUM_CLASSES is for a data set of so many classes and things."""
        return num_things if task_of(cfg) == "instance" else num_classes

    @staticmethod
    def learns_from_instances(cfg: Any) -> bool:
        """Whether data sets of instances alone, without label maps, are enough for this config."""
        return task_of(cfg) == "instance"

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: one dict for each image, as PanopticDatasetMapper makes them: "image"
                ((3, h, w), channels in INPUT.FORMAT); "height" and "width" of the output; in
                training also the ground truth, see `build_mask_targets`.

        Returns:
            In training a dict of weighted scalar losses; else one dict for each image with, as
            far as they are on, "panoptic_seg" ((H, W) int32 ids from 1, 0 void; list of segments
            with unified `category_id`, `isthing`, `score`, `area`, `bbox`), "sem_seg" ((K, H, W)
            scores) and "instances" (unified `pred_classes`).
        """
        images = self.preprocess_image(batched_inputs)
        aux = self.training and self.deep_supervision
        features = self.backbone(images.tensor)
        lazy = {"dense": False} if self.training and takes_dense(self.sem_seg_head) else {}
        outputs = self.sem_seg_head(features, aux=aux, **lazy)
        if self.training:
            return self.losses(outputs, images, batched_inputs)
        return self.postprocess(outputs, images, batched_inputs)

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Let weights with and without the classifier of training be loaded; see `AdaptsStateDict`.

        Inference does not use the classifier, so weights without it lack nothing.
        """
        of_head = any(name.startswith(f"{prefix}sem_seg_head.") for name in state_dict)
        prefix = f"{prefix}semantic_classifier."
        own = self.semantic_classifier.state_dict() if self.semantic_classifier is not None else {}
        for name in [n for n in state_dict if n.startswith(prefix) and n[len(prefix) :] not in own]:
            del state_dict[name]
        if of_head:  # else they would hide that nothing of a foreign file fits
            for name, value in own.items():
                state_dict.setdefault(prefix + name, value)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded with 0 to one size; on a CPU in channels_last layout.

        Convolutions pass the layout on, and those of 1x1 are several times faster in it there.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        if self.device.type == "cpu":
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def mask_targets(
        self, images: ImageList, batched_inputs: list[dict[str, Any]], task: str = ""
    ) -> list[MaskTargets]:
        """Ground truth of each image at the padded size of the batch; see `build_mask_targets`,
        for `task` if this is not the model's own."""
        return [
            build_mask_targets(
                inputs,
                task=task or self.task,
                padded_size=(images.tensor.shape[-2], images.tensor.shape[-1]),
                device=self.device,
                class_index=self.class_index,
                ignore_value=self.ignore_value,
            )
            for inputs in batched_inputs
        ]

    def losses(
        self, outputs: dict[str, Any], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Weighted losses of the head's outputs, by name."""
        targets = self.query_targets(outputs, images, batched_inputs)
        losses = self.criterion(outputs, targets)
        weights = self.criterion.weight_dict
        losses = {name: loss * weights[name] for name, loss in losses.items() if name in weights}
        logits = outputs.get("semantic_logits")
        if self.semantic_classifier is not None:
            logits = self.semantic_classifier(outputs["mask_features"])
        if logits is not None:
            every = targets
            if self.finds_stuff_in_map(outputs):
                every = self.mask_targets(images, batched_inputs)
            labels = [target.label_map(tuple(logits.shape[-2:])) for target in every]
            loss = semantic_loss(logits, torch.stack(labels))
            losses["loss_sem_seg"] = loss * self.semantic_loss_weight
        if "place_logits" in outputs:
            losses.update(self.centre_losses(outputs, targets))
        return losses

    def finds_stuff_in_map(self, outputs: dict[str, Any]) -> bool:
        """Whether the queries are for things alone. The map of an instance model saw no stuff."""
        return "semantic_logits" in outputs and self.task == "panoptic"

    def query_targets(
        self, outputs: dict[str, Any], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> list[MaskTargets]:
        """What the queries have to find: things alone where stuff is found in the semantic map.
        Where queries have places, `outputs` learn to which targets each belongs."""
        task = "instance" if self.finds_stuff_in_map(outputs) else self.task
        targets = self.mask_targets(images, batched_inputs, task)
        if "places" in outputs:
            pairs = zip(outputs["places"], targets, strict=True)
            outputs["out_of_place"] = [outside_target(places, target) for places, target in pairs]
        return targets

    def centre_losses(
        self, outputs: dict[str, Any], targets: Sequence[MaskTargets]
    ) -> dict[str, Tensor]:
        """Weighted losses of the map of thing centres and of the boxes around them."""
        size = tuple(outputs["place_logits"].shape[-2:])
        maps = [centre_map(target, size) for target in targets]
        heat = torch.stack([heat for heat, _ in maps])[:, None]
        boxes = torch.stack([boxes for _, boxes in maps])
        weight = self.centre_loss_weight
        return {
            "loss_centre": weight * centre_loss(outputs["place_logits"], heat),
            "loss_box": weight * box_loss(outputs["place_boxes"], boxes, heat),
        }

    def postprocess(
        self, outputs: dict[str, Any], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The outputs of each image, see `forward`.

        Args:
            outputs: of the head, "pred_logits", "pred_masks" and perhaps "semantic_logits".
            images: the padded batch.
            batched_inputs: "height" and "width" give the output size.
        """
        in_map = self.finds_stuff_in_map(outputs)
        sizes = [
            Sizes(
                image_size=tuple(size),
                padded_size=tuple(images.tensor.shape[-2:]),
                output_size=(inputs.get("height", size[0]), inputs.get("width", size[1])),
            )
            for size, inputs in zip(images.image_sizes, batched_inputs, strict=True)
        ]
        wanted = MaskOutputs(
            panoptic=self.panoptic_on and not in_map,
            semantic=self.semantic_on and not in_map,
            instances=self.instance_on,
            thing_ids=self.thing_classes,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            resize_first=self.resize_before_semantic,
            top_k=self.max_instances,
        )
        results = mask_inference(outputs["pred_logits"], outputs["pred_masks"], sizes, wanted)
        for image, result in enumerate(results):
            if in_map:
                result.update(self._with_stuff(outputs, image, sizes[image]))
            if self.panoptic_on:
                result["panoptic_seg"] = with_extents(*result["panoptic_seg"])
            if self.instance_on and self.renamed_classes:
                instances = result["instances"]
                instances.pred_classes = self.class_ids[instances.pred_classes]
        return results

    def _with_stuff(self, outputs: dict[str, Any], image: int, sizes: Sizes) -> dict[str, Any]:
        """ "sem_seg" and "panoptic_seg" of an image whose queries are for things alone."""
        semantic_logits = outputs["semantic_logits"][image]
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_scores(semantic_logits, **sizes)
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_with_stuff(
                outputs["pred_logits"][image],
                outputs["pred_masks"][image],
                semantic_logits,
                **sizes,
                thing_ids=self.thing_classes,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
                stuff_area_threshold=self.stuff_area_threshold,
            )
        return result


def _column(values: Sequence[float]) -> Tensor:
    return torch.as_tensor(list(values), dtype=torch.float32).view(-1, 1, 1)


def _classes_of_head(cfg: Any) -> dict[str, Any]:
    """Contiguous id of each class of the head: all of the data set's, or its things alone."""
    dataset = classes_of_dataset(cfg)
    thing_ids, total = dataset.thing_ids, dataset.num_classes
    found = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    test = cfg.MODEL.MASK_FORMER.TEST
    if found == total:
        class_ids = list(range(total))
    elif found == len(thing_ids) and task_of(cfg) == "instance":
        class_ids = thing_ids
        if test.SEMANTIC_ON or test.PANOPTIC_ON:
            raise ConfigError(
                "MODEL.MASK_FORMER.TEST.SEMANTIC_ON and PANOPTIC_ON need all classes of the data "
                f"set, but this model has its {found} thing classes only; switch both off"
            )
    else:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {found}, but data set {dataset.dataset_name} has "
            f"{total} classes, {len(thing_ids)} of them things; leave the key out and it is derived"
        )
    return {"class_ids": class_ids, "thing_ids": thing_ids, "num_dataset_classes": total}
