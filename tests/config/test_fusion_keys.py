"""MODEL.PANOPTIC_FUSION: models that read it, models that refuse it, and configs of older runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from tests import ROOT

CONFIGS = ROOT / "configs"
FILES = {
    "fpn": CONFIGS / "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml",
    "efficientps": CONFIGS / "shapes/efficientps/efficientps_R18_shapes.yaml",
    "mask2former": CONFIGS / "shapes/mask2former/mask2former_R18_shapes.yaml",
}
BLOCK = "MODEL.PANOPTIC_FUSION"


def load(which: str, *opts: str):
    return load_cfg(str(FILES[which]), opts, use_data=False).MODEL.PANOPTIC_FUSION


@pytest.mark.parametrize("which", FILES)
def test_the_fusion_is_the_models_own_unless_given(which: str) -> None:
    assert load(which).NAME == ""


@pytest.mark.parametrize("which", ["fpn", "efficientps"])
def test_a_fusion_may_be_chosen(which: str) -> None:
    assert load(which, f"{BLOCK}.NAME", "upsnet").NAME == "upsnet"


@pytest.mark.parametrize(
    ("key", "value"),
    [("NAME", "foo"), ("NAME", "hadamard"), ("UPSNET.NMS_THRESHOLD", "0.4"), ("VOID_POLICY", "a")],
)
def test_a_model_without_a_fusion_refuses_the_keys(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{BLOCK}\.{key} is .*PanopticExtMaskFormer takes no"):
        load("mask2former", f"{BLOCK}.{key}", value)


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("SCORE_THRESHOLD", "INSTANCES_CONFIDENCE_THRESH"),
        ("OVERLAP_THRESHOLD", "OVERLAP_THRESH"),
        ("STUFF_AREA_THRESHOLD", "STUFF_AREA_LIMIT"),
    ],
)
def test_panoptic_fpn_refuses_thresholds_that_it_reads_elsewhere(key: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.{key} is .*COMBINE\.{instead}; set that"):
        load("fpn", f"{BLOCK}.{key}", "0.25" if key != "STUFF_AREA_THRESHOLD" else "25")
    load("efficientps", f"{BLOCK}.{key}", "0.25" if key != "STUFF_AREA_THRESHOLD" else "25")


@pytest.mark.parametrize("which", FILES)
def test_the_config_of_an_earlier_run_means_what_it_meant(which: str, tmp_path: Path) -> None:
    cfg = load_cfg(str(FILES[which]), use_data=False).clone()
    cfg.defrost()
    cfg.MODEL.PANOPTIC_FUSION.NAME = "upsnet" if which == "efficientps" else "hadamard"
    cfg.MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD = 0.3  # nobody else read it
    del cfg.INPUT["KEEP_EMPTY_SEGMENTS"]  # not there yet
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    loaded = load_cfg(str(path), use_data=False).MODEL.PANOPTIC_FUSION
    if which == "efficientps":
        assert (loaded.NAME, loaded.SCORE_THRESHOLD) == ("upsnet", 0.3)
    else:
        assert (loaded.NAME, loaded.SCORE_THRESHOLD) == ("", 0.5)
    if which == "fpn":
        opts = (f"{BLOCK}.NAME", "hadamard")
        assert load_cfg(str(path), opts, use_data=False).MODEL.PANOPTIC_FUSION.NAME == "hadamard"


@pytest.mark.parametrize("which", FILES)
def test_the_config_of_a_run_loads_again(which: str, tmp_path: Path) -> None:
    opts = () if which == "mask2former" else (f"{BLOCK}.NAME", "hadamard")
    cfg = load_cfg(str(FILES[which]), opts, use_data=False)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_cfg(str(tmp_path / "config.yaml"), use_data=False)
    assert again.MODEL.PANOPTIC_FUSION == cfg.MODEL.PANOPTIC_FUSION


@pytest.mark.parametrize("which", ["fpn", "mask2former"])
def test_a_block_that_a_user_wrote_is_not_taken_for_one_of_an_earlier_run(
    which: str, tmp_path: Path
) -> None:
    block = "{NAME: upsnet, UPSNET: {NMS_THRESHOLD: 0.4}}"
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {FILES[which]}\nMODEL: {{PANOPTIC_FUSION: {block}}}\n")
    if which == "mask2former":
        with pytest.raises(ConfigError, match="takes no fusion"):
            load_cfg(str(path), use_data=False)
        return
    loaded = load_cfg(str(path), use_data=False).MODEL.PANOPTIC_FUSION
    assert (loaded.NAME, loaded.UPSNET.NMS_THRESHOLD) == ("upsnet", 0.4)


def test_the_key_is_refused_by_detectron2s_build_model_too() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(FILES["mask2former"]))
    cfg.merge_from_list([f"{BLOCK}.NAME", "hadamard", "MODEL.DEVICE", "meta"])
    with pytest.raises(ConfigError, match=r"NAME is 'hadamard', but .* takes no fusion"):
        build_model(cfg)
