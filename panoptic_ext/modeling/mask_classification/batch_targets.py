"""The targets of a batch, of which a criterion sees one part after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from panoptic_ext.modeling.mask_classification.targets import MaskTargets

__all__ = ["BatchTargets"]


@dataclass(frozen=True)
class BatchTargets:
    """The targets of all images of a batch, of which a criterion sees a part.

    Attributes:
        targets: of each image.
        kept: what `once` has computed.
    """

    targets: Sequence[MaskTargets]
    kept: dict[str, Tensor] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives for the batch, computed for its first part alone."""
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]
