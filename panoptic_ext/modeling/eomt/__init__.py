"""Parts of EoMT: its prediction head, masked attention, annealing and published weights."""

from panoptic_ext.modeling.eomt.annealing import Annealing, annealing_pairs, mask_probability
from panoptic_ext.modeling.eomt.attention_mask import attention_mask
from panoptic_ext.modeling.eomt.build import build_annealing, head_arguments
from panoptic_ext.modeling.eomt.head import EoMTHead

__all__ = [
    "Annealing",
    "EoMTHead",
    "annealing_pairs",
    "attention_mask",
    "build_annealing",
    "head_arguments",
    "mask_probability",
]
