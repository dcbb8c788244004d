from .sem_seg_fpn import VoidSafeSemSegFPNHead

__all__ = ["VoidSafeSemSegFPNHead"]
