"""Inputs and output of every fusion, the base class of fusions, and their registry.

Shapes: K classes, things and stuff in one space of contiguous ids; N instances, m x m mask logits
inside a box, H x W pixels of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, TypeVar

from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError, check_known, look_up
from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = [
    "PANOPTIC_FUSION_REGISTRY",
    "Detections",
    "FusionRule",
    "PanopticFusion",
    "PanopticMap",
    "build_panoptic_fusion",
    "check_threshold",
]

PanopticMap = tuple[Tensor, list[dict[str, Any]]]
"""(H, W) int32 map of segment ids, 0 for void; and for each segment a dict of `id` (from 1),
`isthing`, `category_id` (contiguous) and `area` (pixels). Things also have `score` and
`instance_id`, their index in the detections."""

VOID_POLICIES = ("void", "stuff")
Fusion = TypeVar("Fusion", bound="type[PanopticFusion]")


@dataclass(frozen=True)
class Detections:
    """The instances that a detector found in one image, in any order.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the output; may reach beyond it.
        scores: (N,) in 0..1.
        classes: (N,) int64 contiguous ids of things.
        mask_logits: (N, m, m) logits, not probabilities, of the predicted class in its box; any
            floating type.

    Raises:
        ValueError: the tensors do not have these shapes, or different N.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    mask_logits: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
        count, side = len(self.boxes), self.mask_logits.shape[-1]
        expected = {
            "boxes": (count, 4),
            "scores": (count,),
            "classes": (count,),
            "mask_logits": (count, side, side),
        }
        if shapes != expected:
            raise ValueError(
                f"the shapes of detections are {shapes}; expected {expected}, one row an instance"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Detections:
        """The detections in the rows that an int64 index or a bool mask selects."""
        return Detections(*(value[index] for value in vars(self).values()))


@dataclass(frozen=True)
class FusionRule:
    """The settings that all fusions share: thing classes and thresholds.

    Args:
        thing_ids: contiguous ids of the thing classes; stored ascending and without duplicates. All
            other classes are stuff.
        num_classes: K.
        score_threshold: 0..1; instances with a lower score are ignored.
        overlap_threshold: 0..1; an instance is discarded if the better instances that were kept
            cover more than this share of its mask.
        stuff_area_threshold: pixels; stuff with fewer becomes void.
        void_policy: decides about pixels that no instance wins and whose best class is a thing:
            "void" makes them void, "stuff" gives them their best stuff class.

    Raises:
        ConfigError: a value outside its range, such as a threshold of 50, which would drop every
            instance; a thing id outside 0..K-1; an unknown `void_policy`.
    """

    thing_ids: Sequence[int]
    num_classes: int
    score_threshold: float = 0.5
    overlap_threshold: float = 0.5
    stuff_area_threshold: float = 2048
    void_policy: str = "void"

    def __post_init__(self) -> None:
        # The dataclass is frozen; this is the one place that writes to it.
        things = tuple(sorted({int(thing) for thing in self.thing_ids}))
        object.__setattr__(self, "thing_ids", things)
        outside = [thing for thing in things if not 0 <= thing < self.num_classes]
        if outside:
            raise ConfigError(
                f"thing_ids {outside} are outside 0..{self.num_classes - 1}; fusion takes "
                "contiguous ids, and MODEL.SEM_SEG_HEAD.NUM_CLASSES counts things and stuff "
                "together"
            )
        for name in _CHECKED_NAMES:
            check_threshold(name, getattr(self, name), name)

    @property
    def stuff_ids(self) -> list[int]:
        """Contiguous ids of the stuff classes, ascending."""
        return [label for label in range(self.num_classes) if label not in self.thing_ids]

    def check_channels(self, sem_seg: Tensor) -> None:
        """Raise ValueError unless (K, H, W) logits have one channel for each class."""
        if len(sem_seg) != self.num_classes:
            raise ValueError(
                f"sem_seg has {len(sem_seg)} channels, but there are {self.num_classes} classes; "
                "fusion needs one channel for each thing and each stuff class"
            )


_CHECKED_NAMES = ("score_threshold", "overlap_threshold", "stuff_area_threshold", "void_policy")


def check_threshold(name: str, value: Any, key: str) -> None:
    """Check one value of a FusionRule, or a share from 0 to 1.

    Args:
        name: an attribute of FusionRule; any other name stands for a share from 0 to 1.
        value: the value to check.
        key: the name in the message, such as the config key that the value comes from.

    Raises:
        ConfigError: the value is outside its range.
    """
    if name == "void_policy":
        check_known(key, value, VOID_POLICIES)
    elif name == "stuff_area_threshold":
        # `not value >= 0` instead of `value < 0`, so that NaN is refused, too.
        if not value >= 0:
            raise ConfigError(f"{key} is {value!r}; expected pixels, 0 or more; 0 keeps all stuff")
    elif not 0 <= value <= 1:
        raise ConfigError(f"{key} is {value!r}; expected a number from 0 to 1; write 50% as 0.5")


class FusionRegistry(Registry):
    """Detectron2's Registry, which also registers a class under a name of its own choice."""

    def register_as(self, name: str) -> Callable[[Fusion], Fusion]:
        """A decorator that registers a class under the name that configs use."""

        def register(fusion: Fusion) -> Fusion:
            self._do_register(name, fusion)
            return fusion

        return register


PANOPTIC_FUSION_REGISTRY = FusionRegistry("PANOPTIC_FUSION")
PANOPTIC_FUSION_REGISTRY.__doc__ = """
Subclasses of PanopticFusion, whose docstring is the contract; called as
`fusion(cfg, thing_ids=thing_ids)`.
"""


class PanopticFusion(nn.Module):
    """Merges one image's semantic logits and detections into a panoptic map.

    This class is the contract of the registry. A fusion of your own, in any package:

        @PANOPTIC_FUSION_REGISTRY.register_as("mine")
        class MyFusion(PanopticFusion):
            def forward(self, sem_seg, detections):
                ...  # uses self.rule
                return panoptic_map, segments_info

    Import the module that registers it before the model is built, and set
    MODEL.PANOPTIC_FUSION.NAME "mine" with Panoptic FPN or EfficientPS.

    A fusion with an option decorates `__init__` with `configurable`, takes the option as a keyword
    argument, and adds its value to the dict that `from_config` returns. A fusion that learns sets
    `wants_training` and defines `training_losses`. The model holds the fusion as its submodule
    `fusion`, so that the parameters are trained and saved.
    """

    wants_training: ClassVar[bool] = False
    """Whether the fusion has parameters to learn: a model then calls `training_losses` in every
    training step."""
    needs_mask_logits: ClassVar[bool] = True
    """Whether the mask head must keep its logits. False: logits that are computed from the head's
    probabilities, and may be infinite, are good enough."""
    rule_keys: ClassVar[Mapping[str, str]] = {name: name.upper() for name in _CHECKED_NAMES}
    """For each value of the rule its key below MODEL.PANOPTIC_FUSION."""

    @configurable
    def __init__(self, rule: FusionRule) -> None:
        """
        Args:
            rule: classes and thresholds.
        """
        super().__init__()
        self.rule = rule

    @classmethod
    def from_config(cls, cfg: Any, *, thing_ids: Collection[int]) -> dict[str, Any]:
        """Arguments of `__init__` for a config.

        Args:
            cfg: a config with the keys of `add_panoptic_ext_config`.
            thing_ids: contiguous ids of the data set's things.

        Raises:
            ConfigError: a value outside its range; the message names its key.
        """
        values = {}
        for name, key in cls.rule_keys.items():
            values[name] = reduce(getattr, key.split("."), cfg.MODEL.PANOPTIC_FUSION)
            check_threshold(name, values[name], f"MODEL.PANOPTIC_FUSION.{key}")
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {"rule": FusionRule(tuple(thing_ids), num_classes, **values)}

    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """Give every pixel to an instance, to a stuff class or to void.

        Args:
            sem_seg: (K, H, W) semantic logits at the output's resolution, channel = contiguous id;
                any floating type. A fusion must not write to it.
            detections: of the same image; N may be 0.

        Returns:
            See `PanopticMap`. Ids count from 1 without a gap; no segment is empty.

        Raises:
            ValueError: `sem_seg` does not have K channels, or an instance's class is not a thing.
        """
        raise NotImplementedError

    def training_losses(
        self,
        *,
        detections: Sequence[Detections],
        image_size: Sequence[Size],
        sem_seg_target: Sequence[Tensor] | Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, which the model adds to its own.

        Every argument holds one entry per image. Instances are detections of the current weights,
        or the foreground proposals that the mask head is trained on: they may overlap, and several
        may show the same object. No gradient flows back into them.

        Args:
            detections: with boxes in pixels of the training image.
            image_size: (height, width) of the training image without padding.
            sem_seg_target: (H_i, W_i) integer contiguous ids, at least as large as the image.
                Padding at the right and at the bottom is ignored, and so are values outside 0..K-1.

        Returns:
            Scalar losses by name; no losses for a fusion without parameters.
        """
        return {}

    def extra_repr(self) -> str:
        return str(self.rule)


def build_panoptic_fusion(
    cfg: Any, *, thing_ids: Collection[int], default: str = "hadamard"
) -> PanopticFusion:
    """Build the fusion that MODEL.PANOPTIC_FUSION.NAME names.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        thing_ids: contiguous ids of the data set's thing classes, from its metadata.
        default: the fusion where the key is "".

    Raises:
        ConfigError: an unknown name, or a value that the fusion cannot use.
    """
    name = cfg.MODEL.PANOPTIC_FUSION.NAME or default
    fusion = look_up(PANOPTIC_FUSION_REGISTRY, "MODEL.PANOPTIC_FUSION.NAME", name)
    return fusion(cfg, thing_ids=thing_ids)
