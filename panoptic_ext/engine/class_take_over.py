"""Begin a training with weights of other classes: those of the same name keep what they learnt."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from panoptic_ext.engine.checkpoint.class_names import (
    classes_named,
    classes_of_config,
    classes_of_weights,
)
from panoptic_ext.errors import ConfigError, listed, quoted, unknown
from panoptic_ext.modeling.meta_arch.class_rows import Moved, class_layers_of, move_rows
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses

__all__ = ["ClassTakeOver", "class_take_over", "plain_name", "sources_of_classes"]

logger = logging.getLogger(__name__)

_MOST_NAMED = 40  # classes in a line of the log


@dataclass(frozen=True)
class ClassTakeOver:
    """Edits weights that are loaded into a model of other classes.

    Attributes:
        classes: of the model.
        address: MODEL.WEIGHTS.
        given: classes of the weights, whatever their file says; None: as it says.
        aliases: class of the model -> class of the weights, in place of its own name.
    """

    classes: DatasetClasses
    address: str
    given: DatasetClasses | None
    aliases: dict[str, str]

    def __call__(self, path: str, checkpoint: dict[str, Any], model: nn.Module) -> None:
        """Move the rows of classes in `checkpoint["model"]`, in place, and log which.

        All workers must call this.

        Args:
            path: the local file.
            checkpoint: its content, with the model's names of tensors.
            model: that the weights will be loaded into.

        Raises:
            ConfigError: an alias is no class of the model, or none of the weights.
        """
        weights = checkpoint["model"]
        # The first worker decides: others may have got the content of the file alone, without the
        # metadata beside it, and would begin with other rows.
        of_file = classes_of_weights(self.address, path, checkpoint)
        old = self.given or comm.all_gather(of_file)[0]
        if old is None:
            _warn_of_unknown_classes(weights, model, self.address)
            return
        source = sources_of_classes(self.classes, old, self.aliases)
        if source == list(range(old.num_classes)) and self.classes.isthing == old.isthing:
            return
        moved = move_rows(
            weights,
            model,
            isthing=self.classes.isthing,
            isthing_of_weights=old.isthing,
            source=source,
        )
        if moved:
            self._log(old, source, moved)

    def _log(
        self, old: DatasetClasses, source: Sequence[int | None], moved: Sequence[Moved]
    ) -> None:
        names = self.classes.names
        kept = {k for layer in moved for k in layer.kept}
        taken = [
            name if name == old.names[j] else f"{name} (from {old.names[j]})"
            for k, (name, j) in enumerate(zip(names, source, strict=True))
            if j is not None and k in kept
        ]
        fresh = [name for k, name in enumerate(names) if k not in kept]
        logger.info(
            "Of the %d classes of %s, %d are taken over from the %d of the weights (%s): %s. %s",
            len(names),
            self.classes.dataset_name,
            len(taken),
            old.num_classes,
            old.dataset_name,
            listed(taken, _MOST_NAMED, show=str) or "none",
            f"{len(fresh)} start fresh: {listed(fresh, _MOST_NAMED, show=str)}"
            if fresh
            else "None starts fresh",
        )
        # A class that is a thing here and stuff there has a row in some layers alone.
        partly: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for layer in moved:
            lacking = tuple(k for k in layer.fresh if k in kept)
            if lacking:
                partly[lacking].append(layer.layer)
        for lacking, layers in partly.items():
            logger.info(
                "  %s start fresh for %s, which the weights have in other layers alone",
                listed(layers, _MOST_NAMED, show=str),
                listed([names[k] for k in lacking], _MOST_NAMED, show=str),
            )


def class_take_over(cfg: CfgNode) -> ClassTakeOver | None:
    """What MODEL.WEIGHTS_CLASSES says about the classes of MODEL.WEIGHTS.

    Args:
        cfg: its data sets are registered.

    Returns:
        None where the model's classes have no names.

    Raises:
        ConfigError: an alias is not of the form "class=class of the weights".
        DatasetError: WEIGHTS_CLASSES.DATASET is no data set with classes.
    """
    classes, keys = classes_of_config(cfg), cfg.MODEL.WEIGHTS_CLASSES
    if classes is None:
        return None
    aliases = {}
    for alias in keys.ALIASES:
        mine, sign, its = alias.partition("=")
        if not (mine.strip() and sign and its.strip()):
            raise ConfigError(
                f"MODEL.WEIGHTS_CLASSES.ALIASES has {quoted(alias)}, expected 'CLASS=CLASS OF THE "
                "WEIGHTS', such as 'window=window-other'"
            )
        aliases[mine.strip()] = its.strip()
    given = classes_named(keys.DATASET) if keys.DATASET else None
    return ClassTakeOver(classes, cfg.MODEL.WEIGHTS, given, aliases)


def plain_name(name: str) -> str:
    """A name without case, and with one space for spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def sources_of_classes(
    classes: DatasetClasses, old: DatasetClasses, aliases: dict[str, str]
) -> list[int | None]:
    """For each class the index of that of the same name in `old`, by `plain_name`.

    Of several with one plain name, such as a thing and a stuff class, that of the same kind is
    taken. If several are left, or two classes want the same one, the name decides nothing and the
    class has none.

    Raises:
        ConfigError: an alias is no class of the model, or none of `old`.
    """
    key = "MODEL.WEIGHTS_CLASSES.ALIASES"
    mine, its = _by_plain_name(classes.names), _by_plain_name(old.names)
    wanted = {name: plain_name(name) for name in classes.names}
    for alias, name in aliases.items():
        if plain_name(alias) not in mine:
            raise ConfigError(unknown(f"class in {key}", alias, classes.names))
        if plain_name(name) not in its:
            raise ConfigError(unknown(f"class of the weights in {key}", name, old.names))
        wanted.update({classes.names[k]: plain_name(name) for k in mine[plain_name(alias)]})
    sources: list[int | None] = []
    for name, isthing in zip(classes.names, classes.isthing, strict=True):
        found = its.get(wanted[name], [])
        of_kind = [j for j in found if old.isthing[j] == isthing]
        found = of_kind or found
        sources.append(found[0] if len(found) == 1 else None)
    return sources


def _by_plain_name(names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        found[plain_name(name)].append(i)
    return dict(found)


def _warn_of_unknown_classes(weights: dict[str, Any], model: nn.Module, address: str) -> None:
    """Say how classes could be taken over, where a layer of the file has other rows."""
    own = model.state_dict()
    for layer, _ in class_layers_of(model):
        name = f"{layer}.weight"
        if name in weights and name in own and weights[name].shape != own[name].shape:
            logger.warning(
                "The weights %s are of other classes: %s has %d rows, the model's %d. They do not "
                "say which classes these are, so that none can be taken over; name their data set: "
                "MODEL.WEIGHTS_CLASSES.DATASET",
                address,
                layer,
                weights[name].shape[0],
                own[name].shape[0],
            )
            return
