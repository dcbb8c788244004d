"""Pictures of ground truth, predictions and runs."""

from .contact_sheet import (
    SheetRow,
    contact_sheet,
    ground_truth_segments,
    pq_contact_sheet,
    save_picture,
)
from .draw import draw_panoptic, readable_scale
from .pictures import Pictures

__all__ = [
    "Pictures",
    "SheetRow",
    "contact_sheet",
    "draw_panoptic",
    "ground_truth_segments",
    "pq_contact_sheet",
    "readable_scale",
    "save_picture",
]
