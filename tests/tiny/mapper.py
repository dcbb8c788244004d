"""The mapper with defaults for tests."""

from typing import Any

from panoptic_ext.data import PanopticDatasetMapper


def mapper(*augmentations: Any, **options: Any) -> PanopticDatasetMapper:
    """For training (unless `is_train` is in `options`), in BGR order, with these augmentations."""
    return PanopticDatasetMapper(
        options.pop("is_train", True),
        augmentations=list(augmentations),
        image_format="BGR",
        **options,
    )
