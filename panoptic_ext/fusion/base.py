"""The registry of panoptic fusions, what each takes and returns, and how a config names one.

Shapes: K unified classes (things and stuff in one space), N instances, m x m mask logits inside a
box, H x W pixels of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from detectron2.utils.registry import Registry
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError, look_up

__all__ = ["PANOPTIC_FUSION_REGISTRY", "PanopticFusion", "build_panoptic_fusion"]

Fusion = TypeVar("Fusion", bound="type[PanopticFusion]")


class FusionRegistry(Registry):
    """Detectron2's Registry, with names that are not the classes' own."""

    def register_as(self, name: str) -> Callable[[Fusion], Fusion]:
        """A decorator that registers a class under the name that configs use."""

        def register(fusion: Fusion) -> Fusion:
            self._do_register(name, fusion)
            return fusion

        return register


PANOPTIC_FUSION_REGISTRY = FusionRegistry("PANOPTIC_FUSION")
PANOPTIC_FUSION_REGISTRY.__doc__ = """
Subclasses of PanopticFusion, called as `fusion(cfg, thing_ids=thing_ids)`.
"""


class PanopticFusion(nn.Module):
    """Merges one image's semantic logits and instances; the contract of the registry.

    A subclass has explicit keyword arguments, decorates `__init__` with `configurable` and extends
    `from_config`.
    """

    wants_training: bool = False
    """Whether it has parameters to learn: a model in training then calls `training_losses`."""

    def __init__(self, *, thing_ids: Collection[int], num_classes: int) -> None:
        """
        Args:
            thing_ids: unified ids of the classes that are things; the others are stuff.
            num_classes: K.

        Raises:
            ConfigError: a thing id outside 0..K-1.
        """
        super().__init__()
        self.thing_ids = tuple(sorted({int(thing) for thing in thing_ids}))
        self.num_classes = num_classes
        outside = [thing for thing in self.thing_ids if not 0 <= thing < num_classes]
        if outside:
            raise ConfigError(
                f"thing_ids {outside} are outside 0..{num_classes - 1}; fusion takes unified ids, "
                "and MODEL.SEM_SEG_HEAD.NUM_CLASSES counts things and stuff together"
            )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {"num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}

    def forward(
        self,
        sem_seg: Tensor,
        *,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        mask_logits: Tensor,
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Give every pixel to an instance, to a stuff class or to void.

        Args:
            sem_seg: (K, H, W) semantic logits at the output's resolution, channel = unified class;
                any floating type.
            boxes: (N, 4) x1, y1, x2, y2 in pixels of the output; may reach beyond it.
            scores: (N,) in 0..1, in any order.
            classes: (N,) int64 unified ids of things.
            mask_logits: (N, m, m) logits, not probabilities, of the predicted class in its box.

        Returns:
            (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id` (from
            1), `isthing`, `category_id` (unified) and `area` (pixels); things also have `score`
            and `instance_id`, their index in the arguments.
        """
        raise NotImplementedError

    def training_losses(
        self,
        *,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        image_size: Sequence[tuple[int, int]],
        sem_seg_target: Sequence[Tensor] | Tensor,
    ) -> dict[str, Tensor]:
        """Losses of a batch, for a model to add to its own where `wants_training`.

        Every argument holds one entry per image. Instances may overlap and repeat: detections of
        the current weights, or the foreground proposals that the mask head is trained on. No
        gradient flows back into them.

        Args:
            boxes: (N_i, 4) x1, y1, x2, y2 in pixels of the training image.
            classes: (N_i,) int64 unified ids of things.
            mask_logits: (N_i, m, m) logits of that class in the box.
            image_size: (height, width) of the training image without padding.
            sem_seg_target: (H_i, W_i) integer unified ids, at least of that size (padding at the
                right and below is not looked at); values outside 0..K-1 are ignored.

        Returns:
            scalar losses by name; none in a fusion without parameters.
        """
        return {}


def build_panoptic_fusion(
    cfg: Any, *, thing_ids: Collection[int], default: str = "hadamard"
) -> PanopticFusion:
    """Build the fusion that MODEL.PANOPTIC_FUSION.NAME names.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        thing_ids: unified ids of the data set's thing classes, from its metadata.
        default: the fusion where the key is "".

    Raises:
        ConfigError: an unknown name, or a value that the fusion cannot use.
    """
    name = cfg.MODEL.PANOPTIC_FUSION.NAME or default
    fusion = look_up(PANOPTIC_FUSION_REGISTRY, "MODEL.PANOPTIC_FUSION.NAME", name)
    return fusion(cfg, thing_ids=thing_ids)
