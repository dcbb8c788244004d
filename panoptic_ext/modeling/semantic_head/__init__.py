from .efficientps import DensePredictionCell, EfficientPSSemSegHead
from .sem_seg_fpn import VoidSafeSemSegFPNHead

__all__ = ["DensePredictionCell", "EfficientPSSemSegHead", "VoidSafeSemSegFPNHead"]
