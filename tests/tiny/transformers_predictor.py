"""A Predictor of a tiny model of transformers, and the configs of such models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.modeling.transformers_models.families import FAMILIES as NETWORKS
from panoptic_ext.prediction.predictor import Predictor
from tests.tiny.transformers_models import FAMILIES

transformers = pytest.importorskip(
    "transformers", minversion="4.49", reason="transformers (the hf extra) is not installed"
)
if not transformers.utils.is_torch_available():
    pytest.skip("this transformers needs a newer torch", allow_module_level=True)
transformers.utils.logging.disable_progress_bar()

AVAILABLE = tuple(name for name in FAMILIES if hasattr(transformers, NETWORKS[name].network))
"""The families that the installed transformers has."""
CLASSES = ("sky", "tree", "disc", "grass", "road")
# Lower than in use: random masks overlap much, and random classes are not sure.
LOW = {
    "MODEL__TRANSFORMERS__THRESHOLD": 0.4,
    "MODEL__TRANSFORMERS__OVERLAP_MASK_AREA_THRESHOLD": 0.1,
}


def skip_absent(*names: str) -> list[Any]:
    """Parameters of a test; families that the installed transformers lacks are skipped."""
    version = transformers.__version__
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name not in AVAILABLE, reason=f"transformers {version} has no {name}"
            ),
        )
        for name in names
    ]


EACH_FAMILY = skip_absent(*FAMILIES)


def opts(folder: str, **changes: Any) -> list[str]:
    """KEY VALUE pairs of a model in a folder; keywords are keys with "__" in place of "."."""
    values = {
        "MODEL.META_ARCHITECTURE": "TransformersPanoptic",
        "MODEL.TRANSFORMERS.NAME_OR_PATH": folder,
        "MODEL.DEVICE": "cpu",
        "INPUT.MIN_SIZE_TEST": 0,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [str(text) for pair in values.items() for text in pair]


def tiny_predictor(folder: str, **changes: Any) -> Predictor:
    """A Predictor of the model that `save_tiny` wrote; its data set needs metadata alone."""
    return Predictor(load_cfg("", opts(folder, **changes), use_data=False))


@torch.no_grad()
def raw_outputs(model: Any, image: np.ndarray) -> tuple[Any, Any]:
    """Outputs of the network for one (H, W, 3) BGR image, and the network's image processor."""
    pixels = torch.as_tensor(image.transpose(2, 0, 1).copy())
    kept: dict[str, Any] = {}
    handle = model.network.register_forward_hook(lambda *call: kept.update(raw=call[-1]))
    model([{"image": pixels, "height": image.shape[0], "width": image.shape[1]}])
    handle.remove()
    return kept["raw"], model.source.processor


def post_processed(
    model: Any, image: np.ndarray, stuff: Sequence[int]
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """transformers' own map of segment ids for the image, and its list of segments."""
    outputs, processor = raw_outputs(model, image)
    is_eomt = model.family.is_square
    thresholds = {"threshold": 0.4, "overlap_mask_area_threshold": 0.1}
    shared = {"stuff_classes": list(stuff)} if is_eomt else {"label_ids_to_fuse": set(stuff)}
    result = processor.post_process_panoptic_segmentation(
        outputs, target_sizes=[image.shape[:2]], **thresholds, **shared
    )[0]
    return result["segmentation"], result["segments_info"]
