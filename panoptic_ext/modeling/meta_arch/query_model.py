"""What models have in common whose queries predict a class and a mask each: Mask2Former and others.

Shapes: B images, Q queries, K classes of the data set, H x W an image's output size. Inputs and
outputs have contiguous class ids. The head of an instance model may have things only (`class_ids`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from panoptic_ext.config.image_values import pads_black, side_of_test_batches
from panoptic_ext.config.mask_former import TASKS, mask_former_task
from panoptic_ext.host_copies import to_device
from panoptic_ext.modeling.layers.batch_part import current_part, size_of_batch
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.mask_classification.batch_targets import BatchTargets
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion, semantic_map_loss
from panoptic_ext.modeling.mask_classification.targets import MaskTargets, build_mask_targets
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.classes import classes_of_dataset
from panoptic_ext.modeling.meta_arch.image_batch import normalised_batch, wants_channels_last
from panoptic_ext.modeling.meta_arch.mask_former_head import class_ids_of_head
from panoptic_ext.modeling.meta_arch.segmentation import MaskSegmentation
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs
from panoptic_ext.postprocessing import Sizes

__all__ = ["QueryModel"]

_EMPTY_WEIGHT = "criterion.empty_weight"


class QueryModel(MetaArchitecture, nn.Module):
    """Base class: inputs, targets, losses and outputs. A subclass defines `outputs`.

    The keys of MODEL.MASK_FORMER that choose the task, the losses and the outputs hold for all.
    """

    has_contiguous_classes: ClassVar[bool] = True
    score_threshold_key: ClassVar[str] = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"
    default_fusion: ClassVar[str | None] = ""  # it takes none
    pads_by_config: ClassVar[bool] = True
    mapper_targets: ClassVar[tuple[str, ...]] = ()  # it reads the id map and its table
    class_layers: ClassVar[Mapping[str, ClassLayer]] = {"semantic_classifier": ClassLayer()}
    adds_up_over_parts: bool = True

    pixel_mean: Tensor
    pixel_std: Tensor
    class_ids: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        segmentation: MaskSegmentation,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        class_ids: Sequence[int],
        num_dataset_classes: int,
        task: str = "panoptic",
        pad_black: bool = False,
        test_square: int = 0,
        channels_last: bool = False,
        ignore_value: int = 255,
        deep_supervision: bool = True,
        semantic_classifier: nn.Module | None = None,
    ) -> None:
        """Args (all by keyword):

        backbone: of the images; the subclass says which interface it has.
        sem_seg_head: what predicts classes and masks.
        criterion: losses, and their weights in `weight_dict`.
        segmentation: converts outputs of the head to segmentations.
        pixel_mean, pixel_std: of each channel, grey levels.
        size_divisibility: batches are padded to a multiple of this many pixels.
        class_ids: the contiguous id of each class of the head.
        num_dataset_classes: K.
        task: one of `TASKS`, which chooses the targets; see `build_mask_targets`.
        pad_black: see `normalised_batch`.
        test_square: side that test batches are padded to, pixels; 0: as large as they need be.
        channels_last: see `normalised_batch`.
        ignore_value: void in the ground truth "sem_seg".
        deep_supervision: also apply the losses to the predictions before the last layer.
        semantic_classifier: mask_features -> logits of the auxiliary semantic loss
            ("loss_sem_seg"), in training only; None: no such loss.
        """
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task is {task!r}, expected one of {TASKS}")
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.segmentation = segmentation
        self.size_divisibility = size_divisibility
        self.pad_black = pad_black
        self.test_square = test_square
        self.channels_last = channels_last
        self.task = task
        self.ignore_value = ignore_value
        self.deep_supervision = deep_supervision
        self.semantic_classifier = semantic_classifier
        self.register_buffer("pixel_mean", _column(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", _column(pixel_std), persistent=False)
        ids = torch.as_tensor(list(class_ids), dtype=torch.int64)
        self.class_index = torch.full((num_dataset_classes,), -1, dtype=torch.int64)
        self.class_index[ids] = torch.arange(len(ids))
        self.renamed_classes = bool((self.class_index != torch.arange(num_dataset_classes)).any())
        self.register_buffer("class_ids", ids, persistent=False)

    @staticmethod
    def common_arguments(cfg: Any) -> tuple[dict[str, Any], list[int]]:
        """Read what all subclasses read from a complete config.

        Returns:
            Arguments of the constructor, and which classes of the head are things.
        """
        dataset = classes_of_dataset(cfg)
        class_ids = class_ids_of_head(cfg, dataset)
        things = set(dataset.thing_ids)
        arguments = {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "class_ids": class_ids,
            "num_dataset_classes": dataset.num_classes,
            "task": mask_former_task(cfg),
            "pad_black": pads_black(cfg),
            "test_square": side_of_test_batches(cfg),
            "channels_last": wants_channels_last(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "deep_supervision": cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
        }
        return arguments, [i for i, class_id in enumerate(class_ids) if class_id in things]

    @staticmethod
    def head_classes(cfg: Any, num_classes: int, num_things: int) -> int:
        """What MODEL.SEM_SEG_HEAD.NUM_CLASSES is for a data set of so many classes and things."""
        return num_things if mask_former_task(cfg) == "instance" else num_classes

    @staticmethod
    def learns_from_instances(cfg: Any) -> bool:
        """Whether data sets of instances alone, without label maps, are enough for this config."""
        return mask_former_task(cfg) == "instance"

    @staticmethod
    def gives_semantic_alone(cfg: Any) -> bool:
        """See `MetaArchitecture.gives_semantic_alone`."""
        keys = cfg.MODEL.MASK_FORMER.TEST
        return keys.SEMANTIC_ON and not (keys.PANOPTIC_ON or keys.INSTANCE_ON)

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
            In training a dict of weighted scalar losses; else one dict for each image with the
            outputs that are on: "panoptic_seg" ((H, W) int32 ids from 1, 0 void; list of segments
            with contiguous `category_id`, `isthing`, `score`, `area`, `bbox`), "sem_seg" ((K, H, W)
            scores) and "instances" (contiguous `pred_classes`).
        """
        images = self.preprocess_image(batched_inputs)
        outputs = self.outputs(images.tensor)
        if self.training:
            return self.part_losses(outputs, images, batched_inputs)
        return self.postprocess(outputs, images, batched_inputs)

    def outputs(self, images: Tensor) -> DecoderOutputs:
        """Outputs of the head; in training with those before the last layer if they are supervised.

        Args:
            images: (B, 3, h, w), normalised and padded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `outputs`; see QueryModel")

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Accept weights with and without the auxiliary classifier; see `AdaptsStateDict`.

        Inference does not use the classifier, so weights without it lack nothing. The weight of
        each class in the loss is the config's, where the weights are of another number of classes.
        """
        loss_weights = state_dict.get(f"{prefix}{_EMPTY_WEIGHT}")
        own = self.criterion.empty_weight
        if loss_weights is not None and tuple(loss_weights.shape) != tuple(own.shape):
            state_dict[f"{prefix}{_EMPTY_WEIGHT}"] = own
        has_head = any(name.startswith(f"{prefix}sem_seg_head.") for name in state_dict)
        prefix = f"{prefix}semantic_classifier."
        expected = {} if self.semantic_classifier is None else self.semantic_classifier.state_dict()
        for name in [n for n in state_dict if n.startswith(prefix)]:
            if name.removeprefix(prefix) not in expected:
                del state_dict[name]
        # In a file without a head, added tensors would hide that nothing in the file fits.
        if has_head:
            for name, value in expected.items():
                state_dict.setdefault(prefix + name, value)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size; see `normalised_batch`."""
        return normalised_batch(
            [to_device(x["image"], self.device) for x in batched_inputs],
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=self.size_divisibility,
            pad_black=self.pad_black,
            square=0 if self.training else self.test_square,
            channels_last=self.channels_last,
            least_size=size_of_batch(),
        )

    def mask_targets(
        self, images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> list[MaskTargets]:
        """Ground truth of each image at the padded size of the batch, see `build_mask_targets`."""
        return [
            build_mask_targets(
                inputs,
                task=self.task,
                padded_size=(images.tensor.shape[-2], images.tensor.shape[-1]),
                device=self.device,
                class_index=self.class_index,
                ignore_value=self.ignore_value,
            )
            for inputs in batched_inputs
        ]

    def part_losses(
        self, outputs: DecoderOutputs, images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Losses of a batch, or of a part whose losses add up with the others' to the batch's."""
        part = current_part()
        if part is None:
            return self.losses(outputs, self.mask_targets(images, batched_inputs))
        batch: BatchTargets = part.once(
            "mask_targets", lambda: BatchTargets(self.mask_targets(images, [*part.batch]))
        )
        return self.losses(outputs, batch.targets[part.images], batch)

    def losses(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskTargets],
        batch: BatchTargets | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of the head's outputs, by name.

        Args:
            outputs: of the head.
            targets: of their images.
            batch: see `SetCriterion.forward`.
        """
        # A criterion of others, which knows no parts, is not asked for them.
        losses = self.criterion(outputs, targets, *([] if batch is None else [batch]))
        # The classifier has to stay behind the criterion: autograd adds the gradients of
        # mask_features in the reverse order of its uses; another order changes their last bit.
        if self.semantic_classifier is not None:
            logits = self.semantic_classifier(outputs.mask_features)
            losses["loss_sem_seg"] = semantic_map_loss(
                logits, targets, self.criterion.class_balance, batch
            )
        weights = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}

    def postprocess(
        self, outputs: DecoderOutputs, images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The outputs of each image, see `forward`.

        Args:
            outputs: of the head.
            images: the padded batch.
            batched_inputs: "height" and "width" give the output size.
        """
        sizes = [
            Sizes(
                image_size=tuple(size),
                padded_size=tuple(images.tensor.shape[-2:]),
                output_size=(inputs.get("height", size[0]), inputs.get("width", size[1])),
            )
            for size, inputs in zip(images.image_sizes, batched_inputs, strict=True)
        ]
        results = self.segmentation(outputs, sizes)
        for result in results:
            if "instances" in result and self.renamed_classes:
                instances = result["instances"]
                instances.pred_classes = self.class_ids[instances.pred_classes]
        return results


def _column(values: Sequence[float]) -> Tensor:
    return torch.as_tensor(list(values), dtype=torch.float32).view(-1, 1, 1)
