"""Data: registration, records, the mapper and the id map that all models share."""

from panoptic_ext.config.left_out import derive_with
from panoptic_ext.data.augmentation import build_augmentations
from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.id_map import id2rgb, id_to_rgb, rgb2id, rgb_to_id
from panoptic_ext.data.coco.label_png import read_id_map, write_id_map
from panoptic_ext.data.coco.png_string import read_png_string, write_png_string
from panoptic_ext.data.dataset_mapper import PanopticDatasetMapper
from panoptic_ext.data.datasets.check import check_panoptic, count_segments
from panoptic_ext.data.datasets.class_numbers import derive_left_out
from panoptic_ext.data.datasets.from_config import register_from_config
from panoptic_ext.data.datasets.instances import has_instances_alone, register_instances
from panoptic_ext.data.datasets.metadata import PanopticMetadata, PanopticSource
from panoptic_ext.data.datasets.panoptic import load_panoptic, register_panoptic
from panoptic_ext.data.datasets.registered import (
    annotated,
    check_same_categories,
    filter_empty,
    get_metadata,
    get_records,
    num_classes,
    thing_ids,
)
from panoptic_ext.data.id_map_masks import IdMapMasks
from panoptic_ext.data.map_categories import map_categories

__all__ = [
    "Category",
    "IdMapMasks",
    "PanopticDatasetMapper",
    "PanopticMetadata",
    "PanopticSource",
    "annotated",
    "build_augmentations",
    "check_panoptic",
    "check_same_categories",
    "count_segments",
    "filter_empty",
    "get_metadata",
    "get_records",
    "has_instances_alone",
    "id2rgb",
    "id_to_rgb",
    "load_panoptic",
    "map_categories",
    "num_classes",
    "read_id_map",
    "read_png_string",
    "register_from_config",
    "register_instances",
    "register_panoptic",
    "rgb2id",
    "rgb_to_id",
    "thing_ids",
    "write_id_map",
    "write_png_string",
]

# The room modeling must not import this one. Its models need numbers of classes that only this
# room can read, so the function that derives them is registered with the room config.
derive_with(derive_left_out)
