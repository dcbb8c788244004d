from .panoptic_fpn import UnifiedPanopticFPN

__all__ = ["UnifiedPanopticFPN"]
