"""Stand-in for Detectron2's compiled extension, which this install does not have.

Detectron2 v0.6 imports `detectron2._C` together with its layers. The names below exist, so that
everything imports; each says so when it is called. RoIAlign, NMS and deformable convolution on CPU
come from torchvision and need none of them; COCO AP is computed by pycocotools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

# Read by the patched detectron2/evaluation/fast_eval_api.py.
COMPILED = False

_NOT_BUILT = "not built (Python files only)"


def _missing(name: str) -> Callable[..., NoReturn]:
    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"detectron2._C.{name} is a compiled operator, and this install of Detectron2 (made by "
            "tools/install_detectron2.py of panoptic_ext) has none; rotated boxes and deformable "
            "convolution on a GPU need a build of Detectron2 from its source repository"
        )

    call.__name__ = call.__qualname__ = name
    return call


box_iou_rotated = _missing("box_iou_rotated")
nms_rotated = _missing("nms_rotated")
roi_align_rotated_forward = _missing("roi_align_rotated_forward")
roi_align_rotated_backward = _missing("roi_align_rotated_backward")
deform_conv_forward = _missing("deform_conv_forward")
deform_conv_backward_input = _missing("deform_conv_backward_input")
deform_conv_backward_filter = _missing("deform_conv_backward_filter")
modulated_deform_conv_forward = _missing("modulated_deform_conv_forward")
modulated_deform_conv_backward = _missing("modulated_deform_conv_backward")
InstanceAnnotation = _missing("InstanceAnnotation")
COCOevalEvaluateImages = _missing("COCOevalEvaluateImages")
COCOevalAccumulate = _missing("COCOevalAccumulate")


def get_compiler_version() -> str:
    """Line of `detectron2.utils.collect_env` on the compiler."""
    return _NOT_BUILT


def get_cuda_version() -> str:
    """Line of `detectron2.utils.collect_env` on CUDA."""
    return _NOT_BUILT


def has_cuda() -> bool:
    """False: there is no CUDA code here (torch's own is another matter)."""
    return False
