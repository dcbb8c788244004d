"""What panoptic_ext asks of a meta-architecture, and what holds for those that do not say.

An architecture answers by class attributes and methods. It may inherit them from
`MetaArchitecture` or only define those that differ; `meta_architecture` fills in the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

__all__ = ["AdaptsStateDict", "MetaArchitecture", "meta_architecture"]


@runtime_checkable
class AdaptsStateDict(Protocol):
    """A module (the model or any part of it) that loads weights which are not quite its own."""

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Edit `state_dict`, in place, into one that this module can load.

        The checkpointer calls it before it compares names and shapes; hooks of `load_state_dict`
        would run too late for its report. Typical edits: old names become new ones, tensors are
        left out that only another variant of the module has, and tensors are added that training
        alone uses.

        Args:
            state_dict: weights of the whole model by name.
            prefix: what names of this module begin with: "" for the model, "part." for a part.
        """
        ...


class MetaArchitecture:
    """Attributes and methods that panoptic_ext reads from a meta-architecture; a mixin.

    Use: `class Mine(MetaArchitecture, nn.Module)`, registered in Detectron2's META_ARCH_REGISTRY
    as usual. Every attribute has a default, so a model says only what differs. A class that does
    not inherit from this one may define the same names. Detectron2's own architectures have their
    values in `_OF_OTHERS` below.

    A model that inherits from one of panoptic_ext's inherits its values, in any package.
    """

    has_contiguous_classes: ClassVar[bool] = False
    """Whether things and stuff share one space of class ids, 0..K-1.

    True: MODEL.SEM_SEG_HEAD.NUM_CLASSES and MODEL.ROI_HEADS.NUM_CLASSES are derived from the data
    set, and "sem_seg" and "instances" of the mapper are the model's ground truth. False: the
    numbers of classes stay as given, as Detectron2's models expect. A `from_config` of its own
    begins with `cfg = complete_config(cfg, cls)` of panoptic_ext.config.left_out, so that the
    numbers are derived under Detectron2's build_model, too.
    """
    score_threshold_key: ClassVar[str] = ""
    """Config key of the least score of a thing in the outputs, which predict's
    --confidence-threshold sets; "": there is none."""
    default_fusion: ClassVar[str | None] = None
    """Name in PANOPTIC_FUSION_REGISTRY of the fusion where MODEL.PANOPTIC_FUSION.NAME is "".

    "": the model takes no fusion, and keys of MODEL.PANOPTIC_FUSION that are set are refused. None:
    unknown, nothing is checked.
    """
    combine_keys: ClassVar[Mapping[str, str]] = {}
    """Keys below MODEL.PANOPTIC_FUSION for which the model reads keys below
    MODEL.PANOPTIC_FPN.COMBINE; set in vain, they are refused."""
    mapper_targets: ClassVar[tuple[str, ...]] = ("instances", "sem_seg")
    """What the mapper derives from the id map where INPUT.PANOPTIC_TARGETS is None; () for a model
    that reads the id map and its table themselves."""
    find_unused_parameters: bool = False
    """Whether some parameters get no gradient in a step, so that DistributedDataParallel must look
    for them; may be set on the model itself."""

    @classmethod
    def score_threshold_key_for(cls, cfg: Any) -> str:
        """`score_threshold_key` of a model with this config."""
        return cls.score_threshold_key

    @staticmethod
    def head_classes(cfg: Any, num_classes: int, num_things: int) -> int:
        """What MODEL.SEM_SEG_HEAD.NUM_CLASSES is for a data set.

        Args:
            cfg: the model's config.
            num_classes: K of the data set, things and stuff.
            num_things: how many of them are things.
        """
        return num_classes

    @staticmethod
    def learns_from_instances(cfg: Any) -> bool:
        """Whether data sets of instances alone, without label maps, are enough for this config."""
        return False

    def why_missing(self, missing: Collection[str]) -> str:
        """What to add to the report of loaded weights that lack the parameters `missing`."""
        return ""


# By the name of the class, because published code cannot name attributes of ours. "MaskFormer" is
# the published Mask2Former, where its own package has registered it.
_OF_OTHERS: dict[str, dict[str, str]] = {
    "GeneralizedRCNN": {"score_threshold_key": "MODEL.ROI_HEADS.SCORE_THRESH_TEST"},
    "MaskFormer": {"score_threshold_key": "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"},
    "PanopticFPN": {
        "score_threshold_key": "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    },
    "ProposalNetwork": {},
    "RetinaNet": {"score_threshold_key": "MODEL.RETINANET.SCORE_THRESH_TEST"},
    "SemanticSegmentor": {},
}
_READ_FROM_THE_CLASS = (
    "has_contiguous_classes",
    "score_threshold_key",
    "default_fusion",
    "combine_keys",
    "head_classes",
    "learns_from_instances",
)


def meta_architecture(cfg: Any) -> type[MetaArchitecture]:
    """What MODEL.META_ARCHITECTURE says of itself, complete.

    Args:
        cfg: with a registered MODEL.META_ARCHITECTURE.

    Returns:
        The registered class, if it inherits from `MetaArchitecture`; else a class of that name
        with its attributes and, where it has none, those of the nearest known base class. It is
        for reading attributes, not for building a model.
    """
    arch = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    bases = getattr(arch, "__mro__", ())  # a registered function has none
    if MetaArchitecture in bases:
        return arch
    known = next((_OF_OTHERS[base.__name__] for base in bases if base.__name__ in _OF_OTHERS), None)
    attributes: dict[str, Any] = {} if known is None else {"default_fusion": "", **known}
    for name in _READ_FROM_THE_CLASS:
        if hasattr(arch, name):
            attributes[name] = getattr(arch, name)
    return type(arch.__name__, (MetaArchitecture,), attributes)
