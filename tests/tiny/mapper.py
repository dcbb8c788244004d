"""The mapper with few arguments."""

from typing import Any

from panoptic_ext.data import PanopticDatasetMapper


def mapper(*augmentations: Any, **options: Any) -> PanopticDatasetMapper:
    return PanopticDatasetMapper(
        options.pop("is_train", True),
        augmentations=list(augmentations),
        image_format="BGR",
        **options,
    )
