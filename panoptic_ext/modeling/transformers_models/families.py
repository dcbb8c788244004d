"""What differs between the families of panoptic models of transformers.

Shapes: B images, Q queries, C labels, h x w mask logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["FAMILIES", "Family", "QueryOutputs"]


@dataclass(frozen=True)
class QueryOutputs:
    """Outputs of a network that all families have.

    Attributes:
        class_logits: (B, Q, C + 1); the last is "no object".
        mask_logits: (B, Q, h, w).
    """

    class_logits: Tensor
    mask_logits: Tensor


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    Attributes:
        network: name of its class in transformers.
        class_logits, mask_logits: names of its outputs.
        class_head: ending of the name of the linear layer that predicts classes.
        backbone: beginnings of the names of its backbone's parameters.
        mask_size: size (height, width) that its post-processing resizes masks to first; None for
            the size of the mask logits.
        has_one_rule: whether its post-processing is the published Mask2Former's.
        is_square: whether images are padded with black to the fixed size of the network.
        takes_pixel_mask: whether the network is told which pixels are padding.
        takes_task: whether the network is told its task in words.
        divisor: images are padded to a multiple of this many pixels in training.
    """

    network: str
    class_logits: str = "class_queries_logits"
    mask_logits: str = "masks_queries_logits"
    class_head: str = "class_predictor"
    backbone: tuple[str, ...] = ("model.pixel_level_module.encoder.",)
    mask_size: tuple[int, int] | None = None
    has_one_rule: bool = False
    is_square: bool = False
    takes_pixel_mask: bool = True
    takes_task: bool = False
    divisor: int = 32

    def outputs(self, raw: Any) -> QueryOutputs:
        """The outputs of the network in float32, whatever it computed in."""
        classes, masks = getattr(raw, self.class_logits), getattr(raw, self.mask_logits)
        return QueryOutputs(classes.float(), masks.float())


_EOMT = Family(
    "EomtForUniversalSegmentation",
    backbone=("embeddings.", "layers."),
    has_one_rule=True,
    is_square=True,
    takes_pixel_mask=False,
)
FAMILIES = {
    "detr": Family(
        "DetrForSegmentation",
        class_logits="logits",
        mask_logits="pred_masks",
        class_head="class_labels_classifier",
        backbone=("detr.model.backbone.",),
        divisor=1,
    ),
    "maskformer": Family("MaskFormerForInstanceSegmentation"),
    "mask2former": Family("Mask2FormerForUniversalSegmentation", mask_size=(384, 384)),
    "oneformer": Family(
        "OneFormerForUniversalSegmentation", class_head="decoder.class_embed", takes_task=True
    ),
    "eomt": _EOMT,
    "eomt_dinov3": replace(_EOMT, network="EomtDinov3ForUniversalSegmentation"),
}
"""By the `model_type` of a network's config."""
