"""Panoptic models of Hugging Face's transformers as Detectron2 models.

DETR (Carion et al., ECCV 2020), MaskFormer and Mask2Former (Cheng et al., NeurIPS 2021 and CVPR
2022), OneFormer (Jain et al., CVPR 2023) and EoMT (Kerssies et al., CVPR 2025), as transformers has
them. Shapes: B images, K classes, H x W an image's output size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from panoptic_ext.config.image_values import resizing_of_test_images
from panoptic_ext.config.left_out import complete_config
from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.transformers_classes import plan_classes
from panoptic_ext.modeling.meta_arch.transformers_segmentation import (
    QuerySegmentation,
    thresholds_of,
)
from panoptic_ext.modeling.transformers_models.class_head import with_new_classes
from panoptic_ext.modeling.transformers_models.families import FAMILIES, QueryOutputs
from panoptic_ext.modeling.transformers_models.inputs import (
    TestInput,
    make_test_input,
    make_train_batch,
)
from panoptic_ext.modeling.transformers_models.losses import network_losses
from panoptic_ext.modeling.transformers_models.source import Source, read_source, source_of_text
from panoptic_ext.postprocessing import MaskOutputs, Sizes

__all__ = ["TransformersPanoptic"]

logger = logging.getLogger(__name__)

TASKS = ("panoptic", "instance", "semantic")


@META_ARCH_REGISTRY.register()
class TransformersPanoptic(MetaArchitecture, nn.Module):
    """A network of transformers with its own preprocessing and post-processing.

    In testing it resizes images itself, as its image processor does: set INPUT.MIN_SIZE_TEST 0, so
    that it gets them as they are. In training it takes images as the data mapper augments them.
    """

    has_contiguous_classes: ClassVar[bool] = True
    score_threshold_key: ClassVar[str] = "MODEL.TRANSFORMERS.THRESHOLD"
    default_fusion: ClassVar[str | None] = ""  # it takes none
    mapper_targets: ClassVar[tuple[str, ...]] = ()  # it reads the id map and its table

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        source: Source,
        segmentation: QuerySegmentation,
        label_of_class: Sequence[int],
        reverse_channels: bool = True,
        task: str = "panoptic",
        size: Sequence[int] = (),
        metadata_name: str = "",
        untrained: str = "",
    ) -> None:
        """Args (all by keyword):

        network: a network of one of the families.
        source: its image processor, and OneFormer's inputs of tasks.
        segmentation: converts its outputs.
        label_of_class: for each of the K classes its label in the network, or -1.
        reverse_channels: whether images are BGR.
        task: that OneFormer is told.
        size: shorter and longer side that images are resized to; empty: the image processor's.
        metadata_name: of the metadata with the names of the classes.
        untrained: why the class head has random weights, for an error about results without a
            training; "" if it has not.
        """
        super().__init__()
        check_known("MODEL.TRANSFORMERS.TASK", task, TASKS)
        if len(size) not in (0, 2):
            raise ConfigError(
                f"MODEL.TRANSFORMERS.SIZE is {list(size)}, expected [shorter, longer] in pixels"
            )
        self.network = network
        self.source = source
        self.family = FAMILIES[network.config.model_type]
        self.segmentation = segmentation
        self.label_of_class = torch.as_tensor(list(label_of_class), dtype=torch.int64)
        self.reverse_channels = reverse_channels
        self.task = task
        self.size = tuple(size)
        self.metadata_name = metadata_name
        self.untrained = untrained
        # Of some networks a part has no gradient, such as the last norm of a backbone.
        self.find_unused_parameters = True
        self.backbone_prefixes = tuple(f"network.{name}" for name in self.family.backbone)
        # Labels of a network that keeps its own are not in the order of the classes.
        in_order = list(label_of_class) == list(range(network.config.num_labels))
        self.class_layers = {
            f"network.{name}": ClassLayer(others=1, orders=("all",))
            for name, _ in network.named_modules()
            if in_order and name.endswith(self.family.class_head)
        }
        self.register_load_state_dict_post_hook(_mark_trained)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        cfg = complete_config(cfg, cls)
        keys = cfg.MODEL.TRANSFORMERS
        source = _source(keys)
        plan = plan_classes(cfg, source)
        network = source.network(pretrained=keys.PRETRAINED)
        if plan.is_new:
            network = with_new_classes(network, plan.match.classes, plan.match.label_of_class)
        wanted = MaskOutputs(
            panoptic=keys.PANOPTIC_ON,
            semantic=keys.SEMANTIC_ON,
            instances=keys.INSTANCE_ON,
            thing_ids=frozenset(i for i, isthing in enumerate(plan.isthing) if isthing),
            top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        if resizing := resizing_of_test_images(cfg):
            logger.warning(
                "%s, so images are resized twice in testing, before and by the model's image "
                "processor; INPUT.MIN_SIZE_TEST 0 gives transformers' own results",
                resizing,
            )
        return {
            "network": network,
            "source": source,
            "segmentation": QuerySegmentation(
                FAMILIES[network.config.model_type],
                wanted,
                label_of_class=plan.label_of_class,
                num_labels=network.config.num_labels,
                rule=keys.POST_PROCESSING,
                thresholds=thresholds_of(keys, source.processor),
            ),
            "label_of_class": plan.label_of_class,
            "reverse_channels": cfg.INPUT.FORMAT != "RGB",
            "task": keys.TASK,
            "size": keys.SIZE,
            "metadata_name": plan.metadata_name,
            "untrained": plan.match.report() if plan.is_new and keys.PRETRAINED else "",
        }

    @staticmethod
    def gives_semantic_alone(cfg: Any) -> bool:
        """See `MetaArchitecture.gives_semantic_alone`."""
        keys = cfg.MODEL.TRANSFORMERS
        return keys.SEMANTIC_ON and not (keys.PANOPTIC_ON or keys.INSTANCE_ON)

    @staticmethod
    def loads_own_weights(cfg: Any) -> bool:
        """Whether the model reads its weights itself."""
        return bool(cfg.MODEL.TRANSFORMERS.PRETRAINED)

    @staticmethod
    def config_of_run(cfg: Any) -> Any:
        """The config with the network's own config in it; see `MetaArchitecture.config_of_run`."""
        if cfg.MODEL.TRANSFORMERS.ARCHITECTURE:
            return cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.TRANSFORMERS.ARCHITECTURE = _source(cfg.MODEL.TRANSFORMERS).to_text()
        cfg.freeze()
        return cfg

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: one dict for each image: "image" ((3, h, w), 0 to 255, channels in
                INPUT.FORMAT); "height" and "width" of the output; in training "panoptic_ids" and
                "segments" of PanopticDatasetMapper.

        Returns:
            In training a dict of weighted scalar losses; else one dict for each image with the
            outputs that are on: "panoptic_seg" ((H, W) int32 ids from 1, 0 void; list of segments
            with contiguous `category_id`, `isthing`, `score`, `area`, `bbox`), "sem_seg" ((K, H, W)
            scores) and "instances" (contiguous `pred_classes`). A semantic EoMT, whose processor
            cuts images into windows, has "sem_seg" alone.

        Raises:
            ConfigError: the class head was never trained, or lacks a class to train.
        """
        return self.losses(batched_inputs) if self.training else self.predict(batched_inputs)

    def losses(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses by name, as transformers computes them."""
        if (self.label_of_class < 0).any():
            raise ConfigError(
                "the network has no label for some classes of the data set, and "
                "MODEL.TRANSFORMERS.CLASS_HEAD is keep; set it to auto or new to train them"
            )
        self.untrained = ""
        batch = make_train_batch(
            batched_inputs,
            self.source.processor,
            self.family,
            reverse_channels=self.reverse_channels,
            side=self._side(),
            label_of_class=self.label_of_class,
            device=self.device,
        )
        inputs = self._network_inputs(batch.pixels)
        if self.family.takes_pixel_mask:
            inputs["pixel_mask"] = batch.valid
        return network_losses(self.network, batch, inputs)

    def predict(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The outputs of each image, see `forward`."""
        if self.untrained:
            raise ConfigError(
                f"the class head of {self.source.name} is new and was never trained "
                f"({self.untrained}). Train it, load a checkpoint of a training, or keep the "
                "labels as they are: MODEL.TRANSFORMERS.CLASS_HEAD keep"
            )
        images = [
            make_test_input(
                self._rgb(x["image"]), self.source.processor, self.family, size=self.size
            )
            for x in batched_inputs
        ]
        sizes = [
            Sizes(
                image_size=image.size,
                padded_size=(image.pixels.shape[-2], image.pixels.shape[-1]),
                output_size=(
                    int(x.get("height", x["image"].shape[1])),
                    int(x.get("width", x["image"].shape[2])),
                ),
            )
            for image, x in zip(images, batched_inputs, strict=True)
        ]
        results: list[dict[str, Any]] = [{} for _ in images]
        for rows in _by_shape(images):
            pixels = torch.cat([images[i].pixels for i in rows]).to(self.device)
            raw = self.network(**self._network_inputs(pixels))
            outputs = self.family.outputs(raw)
            if images[rows[0]].offsets:
                results[rows[0]] = self._of_windows(outputs, images[rows[0]], sizes[rows[0]])
                continue
            segmented = self.segmentation(outputs, [sizes[i] for i in rows])
            for i, result in zip(rows, segmented, strict=True):
                results[i] = result
        return results

    def save_pretrained(self, folder: str) -> None:
        """Write the network and its image processor as transformers reads them.

        Args:
            folder: made if it is missing; a name for NAME_OR_PATH and `from_pretrained`.
        """
        self.network.save_pretrained(folder)
        self.source.processor.save_pretrained(folder)
        if self.source.tokenizer is not None:
            self.source.tokenizer.save_pretrained(folder)

    def _of_windows(self, outputs: QueryOutputs, image: TestInput, sizes: Sizes) -> dict[str, Any]:
        """Semantic scores alone: windows have no segments in common."""
        spans = [(int(start), int(stop)) for _, start, stop in image.offsets]
        scores = self.segmentation.of_windows(outputs, spans, image.size, sizes["output_size"])
        return {"sem_seg": scores}

    def _rgb(self, image: Tensor) -> Tensor:
        return image.flip(0) if self.reverse_channels else image

    def _side(self) -> int:
        """Side of the input of a square network, pixels."""
        side = getattr(self.network.config, "image_size", 0)
        return int(side[0] if isinstance(side, (list, tuple)) else side)

    def _network_inputs(self, pixels: Tensor) -> dict[str, Any]:
        """Keyword arguments of the network.

        Args:
            pixels: (B, 3, h, w).
        """
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if self.family.takes_task:
            tokens = torch.tensor(self.source.task_tokens[self.task], device=pixels.device)
            inputs["task_inputs"] = tokens.expand(len(pixels), -1)
        if (
            self.network.config.model_type == "maskformer"
            and self.network.config.use_auxiliary_loss
        ):
            # MaskFormer of transformers 5 fails on its own default with auxiliary losses.
            inputs["output_hidden_states"] = True
        return inputs


def _source(keys: Any) -> Source:
    """The source that the keys of MODEL.TRANSFORMERS name."""
    if keys.ARCHITECTURE and not keys.PRETRAINED:
        return source_of_text(keys.ARCHITECTURE, keys.NAME_OR_PATH)
    return read_source(keys.NAME_OR_PATH)


def _by_shape(images: Sequence[TestInput]) -> list[list[int]]:
    """Indices of images whose inputs have one size: padding them would change the results."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        # The windows of an image are put together by themselves.
        key = (-i,) if image.offsets else tuple(image.pixels.shape[-2:])
        rows.setdefault(key, []).append(i)
    return list(rows.values())


def _mark_trained(model: nn.Module, incompatible: Any) -> None:
    """Hook of load_state_dict: weights of a whole class head are those of a training."""
    assert isinstance(model, TransformersPanoptic)
    head = f"{model.family.class_head}."
    if not any(head in name for name in incompatible.missing_keys):
        model.untrained = ""
