"""Pictures of ground truth, predictions and runs."""

from panoptic_ext.visualization.contact_sheet import (
    SheetRow,
    contact_sheet,
    ground_truth_segments,
    pq_contact_sheet,
    save_picture,
)
from panoptic_ext.visualization.draw import draw_panoptic, readable_scale
from panoptic_ext.visualization.mask_grid import mask_grid
from panoptic_ext.visualization.pictures import Pictures

__all__ = [
    "Pictures",
    "SheetRow",
    "contact_sheet",
    "draw_panoptic",
    "ground_truth_segments",
    "mask_grid",
    "pq_contact_sheet",
    "readable_scale",
    "save_picture",
]
