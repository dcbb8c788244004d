"""What importing panoptic_ext does in a process that has loaded Detectron2 alone.

Loading torch and Detectron2 takes most of the time of such a process: each case runs in a child of
one that has done it.
"""

from __future__ import annotations

import pytest

from tests.test_import import run_well

MASK2FORMER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import Registry

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
NAMES = (
    (META_ARCH_REGISTRY, "MaskFormer", "VideoMaskFormer"),
    (BACKBONE_REGISTRY, "D2SwinTransformer"),
    (SEM_SEG_HEADS_REGISTRY, "MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead",
     "BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"),
    (TRANSFORMER_DECODER_REGISTRY, "StandardTransformerDecoder",
     "MultiScaleMaskedTransformerDecoder"),
)
for registry, *names in NAMES:
    for name in names:
        registry.register(type(name, (), {}))
for split in ("train", "val"):
    for name in ("ade20k_full_sem_seg_{}", "ade20k_instance_{}", "ade20k_panoptic_{}",
                 "mapillary_vistas_panoptic_{}", "mapillary_vistas_sem_seg_{}",
                 "coco_2017_{}_panoptic_with_sem_seg", "coco_2017_{}_stuff_10k_sem_seg"):
        DatasetCatalog.register(name.format(split), list)
        MetadataCatalog.get(name.format(split)).set(ignore_label=255, label_divisor=1000,
                                                    evaluator_type="ade20k_panoptic_seg")
"""

BESIDE_MASK2FORMER = """
import {order}
import mask2former
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.data import DatasetCatalog
from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.data import register_from_config
from detectron2.config import get_cfg
assert META_ARCH_REGISTRY.get("MaskFormer").__module__ == "mask2former"
cfg = get_cfg()
add_panoptic_ext_config(cfg)
register_from_config(cfg)
assert DatasetCatalog["ade20k_panoptic_val"] is list
"""
CASES = {
    "the predictor is imported when it is asked for": """
import panoptic_ext
assert "panoptic_ext.prediction.predictor" not in sys.modules
assert "panoptic_ext.engine" not in sys.modules and "Predictor" in dir(panoptic_ext)
from panoptic_ext import Predictor, load_run_cfg
from panoptic_ext.engine import predictor as address_of_older_scripts
from panoptic_ext.prediction import predictor
assert Predictor is predictor.Predictor is address_of_older_scripts.Predictor
assert load_run_cfg is predictor.load_run_cfg is address_of_older_scripts.load_run_cfg
try:
    panoptic_ext.Predictors
except AttributeError as error:
    assert "no attribute 'Predictors'" in str(error)
else:
    raise AssertionError
""",
    # Installed but not imported, it must not make its data sets disappear.
    "names of mask2former are registered before use": """
import panoptic_ext
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from panoptic_ext.data import register_from_config
assert "ade20k_panoptic_val" not in DatasetCatalog
cfg = get_cfg()
panoptic_ext.add_panoptic_ext_config(cfg)
register_from_config(cfg)  # it uses none of them, so they stay free
assert "ade20k_panoptic_val" not in DatasetCatalog
cfg.DATASETS.TEST = ("ade20k_panoptic_val",)
register_from_config(cfg)
assert "ade20k_panoptic_val" in DatasetCatalog and "mask2former" not in sys.modules
""",
    "mask2former before": BESIDE_MASK2FORMER.format(order="mask2former, panoptic_ext"),
    "mask2former after": BESIDE_MASK2FORMER.format(order="panoptic_ext, mask2former"),
}
RUN_CASES = """
import os, sys, traceback
import detectron2.config, detectron2.data, detectron2.modeling
for name, code in {cases!r}.items():
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            exec(code, {{"sys": sys}})
            print("well:", name)
        except BaseException:
            print("failed:", name, traceback.format_exc())
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A line for each case that ended well, and the traceback of each other one."""
    folder = tmp_path_factory.mktemp("mask2former")
    (folder / "mask2former").mkdir()
    (folder / "mask2former" / "__init__.py").write_text(MASK2FORMER)
    return run_well(RUN_CASES.format(cases=CASES), path=folder)


@pytest.mark.parametrize("name", CASES)
def test_in_a_process_that_has_loaded_detectron2_alone(name: str, outcomes: str) -> None:
    assert f"well: {name}\n" in outcomes, outcomes
