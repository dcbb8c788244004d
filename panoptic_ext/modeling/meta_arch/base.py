"""The interface of a meta-architecture, and the defaults of those that do not define it.

An architecture defines class attributes and methods. It may inherit them from `MetaArchitecture`,
or define only those that differ; `meta_architecture` fills in the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

__all__ = [
    "AdaptsStateDict",
    "BaseWeights",
    "MetaArchitecture",
    "TakesBaseWeights",
    "meta_architecture",
]


@runtime_checkable
class AdaptsStateDict(Protocol):
    """A module (the model or a part of it) that also loads weights of other names or tensors."""

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Edit `state_dict`, in place, so that this module can load it.

        The checkpointer calls this method before it compares names and shapes. Hooks of
        `load_state_dict` would run too late for its report. Typical edits: old names become new
        ones; tensors are removed that only another variant of the module has; tensors are added
        that only training uses.

        Args:
            state_dict: weights of the whole model by name.
            prefix: prefix of this module's names: "" for the model, "part." for a part.
        """
        ...


class BaseWeights(NamedTuple):
    """Weights to which other weights are differences, or that other weights lack.

    Attributes:
        address: file, folder or address to read them from.
        name: what they are, for messages: "the encoder ...".
        key: config key that names them.
        relation: of the other weights to them, for messages.
    """

    address: str
    name: str
    key: str
    relation: str = "holds differences to"


@runtime_checkable
class TakesBaseWeights(Protocol):
    """A model some of whose published weights are differences to other weights, or lack them.

    The checkpointer reads the others and has the model add them, before `adapt_state_dict`.
    """

    def base_weights(self, state_dict: Mapping[str, Any]) -> BaseWeights | None:
        """The weights to which a state dict holds differences, or lacks; None: it is whole."""
        ...

    def add_base_weights(self, state_dict: dict[str, Any], base: Mapping[str, Any]) -> None:
        """Complete `state_dict`, in place, by the tensors that `base_weights` named."""
        ...


class MetaArchitecture:
    """Attributes and methods that panoptic_ext reads from a meta-architecture; a mixin.

    Use: `class Mine(MetaArchitecture, nn.Module)`, registered in Detectron2's META_ARCH_REGISTRY
    as usual. Every attribute has a default, so that a model defines only those that differ. A class
    that does not inherit from this one may define the same names. The values of Detectron2's own
    architectures stand in `_FOREIGN_ATTRIBUTES` below.

    A model that inherits from one of panoptic_ext's inherits its values, in any package.
    """

    has_contiguous_classes: ClassVar[bool] = False
    """Whether things and stuff share one space of class ids, 0..K-1.

    True: MODEL.SEM_SEG_HEAD.NUM_CLASSES and MODEL.ROI_HEADS.NUM_CLASSES are derived from the data
    set, and "sem_seg" and "instances" of the mapper are the model's ground truth. False: the
    numbers of classes stay as given, as Detectron2's models expect. If True, the model's own
    `from_config` begins with `cfg = complete_config(cfg, cls)` of panoptic_ext.config.left_out, so
    that the numbers are derived under Detectron2's build_model, too.
    """
    score_threshold_key: ClassVar[str] = ""
    """Config key of the least score of a thing in the outputs; "": there is none. The command
    predict sets it by --confidence-threshold."""
    default_fusion: ClassVar[str | None] = None
    """Name in PANOPTIC_FUSION_REGISTRY of the fusion where MODEL.PANOPTIC_FUSION.NAME is "".

    "": the model takes no fusion, and keys of MODEL.PANOPTIC_FUSION that are set are refused. None:
    it is unknown whether the model takes one, and the keys are not checked.
    """
    combine_keys: ClassVar[Mapping[str, str]] = {}
    """Key below MODEL.PANOPTIC_FUSION -> the key below MODEL.PANOPTIC_FPN.COMBINE that the model
    reads in its place. The former are refused if they are set."""
    pads_by_config: ClassVar[bool] = False
    """Whether the model pads its batches as INPUT.PAD_VALUE and INPUT.PAD_TO_SQUARE say (by
    `normalised_batch`). If not, these keys get a warning."""
    mapper_targets: ClassVar[tuple[str, ...]] = ("instances", "sem_seg")
    """Ground truth that the mapper derives from the id map where INPUT.PANOPTIC_TARGETS is None; ()
    for a model that reads the id map and its table directly."""
    backbone_prefixes: tuple[str, ...] = ("backbone.",)
    """Beginnings of the names of the backbone's parameters, whose learning rate is multiplied by
    SOLVER.BACKBONE_MULTIPLIER. A model may set it on its instance."""
    find_unused_parameters: bool = False
    """Whether some parameters may get no gradient in a step, so that DistributedDataParallel has to
    search for them. A model may set it on its instance."""
    adds_up_over_parts: bool = False
    """Whether the losses of the parts of a batch add up to those of the batch, because the model
    divides by what `current_part` of `panoptic_ext.modeling.layers.batch_part` says of the batch.
    If not, SOLVER.ACCUMULATION_STEPS takes the mean over parts, by their images. A model may set it
    on its instance."""

    @classmethod
    def score_threshold_key_for(cls, cfg: Any) -> str:
        """`score_threshold_key` of a model with this config."""
        return cls.score_threshold_key

    @staticmethod
    def head_classes(cfg: Any, num_classes: int, num_things: int) -> int:
        """Derive MODEL.SEM_SEG_HEAD.NUM_CLASSES from the classes of a data set.

        Args:
            cfg: the model's config.
            num_classes: K of the data set, things and stuff.
            num_things: how many of these classes are things.
        """
        return num_classes

    @staticmethod
    def learns_from_instances(cfg: Any) -> bool:
        """Whether data sets of instances alone, without label maps, are enough for this config."""
        return False

    @staticmethod
    def gives_semantic_alone(cfg: Any) -> bool:
        """Whether "sem_seg" is the only output with this config, as TEST.SEMANTIC_WINDOWS needs it.

        True also where that is not known: the windows then look at the outputs.
        """
        return True

    @staticmethod
    def loads_own_weights(cfg: Any) -> bool:
        """Whether a model that is built from this config has read its weights by itself.

        MODEL.WEIGHTS may then be empty in prediction and evaluation, too.
        """
        return False

    @staticmethod
    def config_of_run(cfg: Any) -> Any:
        """The config that a run writes into its folder, from which its checkpoints can be loaded.

        A model that is built from files which its config names puts their content into a copy, so
        that the run's folder is enough.
        """
        return cfg

    def why_missing(self, missing: Collection[str]) -> str:
        """Text to add to the report of loaded weights that lack the parameters `missing`."""
        return ""


# Attributes of classes that are not ours, by the name of the class: they do not define them.
# "MaskFormer" is the published Mask2Former, where its own package has registered it.
_FOREIGN_ATTRIBUTES: dict[str, dict[str, str]] = {
    "GeneralizedRCNN": {"score_threshold_key": "MODEL.ROI_HEADS.SCORE_THRESH_TEST"},
    "MaskFormer": {"score_threshold_key": "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"},
    "PanopticFPN": {
        "score_threshold_key": "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    },
    "ProposalNetwork": {},
    "RetinaNet": {"score_threshold_key": "MODEL.RETINANET.SCORE_THRESH_TEST"},
    "SemanticSegmentor": {},
}
# Attributes of `MetaArchitecture` that callers read from the class, before a model is built.
_CLASS_ATTRIBUTES = (
    "has_contiguous_classes",
    "score_threshold_key",
    "default_fusion",
    "combine_keys",
    "pads_by_config",
    "head_classes",
    "learns_from_instances",
    "gives_semantic_alone",
    "loads_own_weights",
    "config_of_run",
)


def meta_architecture(cfg: Any) -> type[MetaArchitecture]:
    """Return a class with all attributes of the meta-architecture that a config names.

    Args:
        cfg: with a registered MODEL.META_ARCHITECTURE.

    Returns:
        The registered class, if it inherits from `MetaArchitecture`. Otherwise a class of that name
        with the attributes that the registered class defines; missing ones are those of its nearest
        known base class. The result is for reading attributes, not for building a model.
    """
    arch = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    bases = getattr(arch, "__mro__", ())  # a registered function has none
    if MetaArchitecture in bases:
        return arch
    names = (base.__name__ for base in bases)
    known = next((_FOREIGN_ATTRIBUTES[name] for name in names if name in _FOREIGN_ATTRIBUTES), None)
    attributes: dict[str, Any] = {} if known is None else {"default_fusion": "", **known}
    for name in _CLASS_ATTRIBUTES:
        if hasattr(arch, name):
            attributes[name] = getattr(arch, name)
    return type(arch.__name__, (MetaArchitecture,), attributes)
