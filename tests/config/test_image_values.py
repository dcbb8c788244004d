"""Bad values of the keys of test sizes and padding: one clear error each, from every door."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.config.image_values import (
    check_test_images,
    pads_black,
    resizing_of_test_images,
    side_of_test_batches,
    side_of_windows,
    sizes_of_test_images,
)
from panoptic_ext.data.resizing import resize_in_testing
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError

SQUARE = ["INPUT.PAD_TO_SQUARE", True, "INPUT.IMAGE_SIZE", 64]


def config(*opts: object) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def test_defaults_are_those_of_detectron2() -> None:
    check_test_images(config())
    assert not pads_black(config()) and side_of_test_batches(config()) == 0
    assert side_of_windows(config()) == 0


@pytest.mark.parametrize(
    ("opts", "side"),
    [
        (["INPUT.TEST_RESIZE", "longest_side"], 64),
        (["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64], 64),
        (["TEST.SEMANTIC_WINDOWS", True], 64),
    ],
)
def test_squares_that_every_image_fits_in(opts: list[object], side: int) -> None:
    assert side_of_test_batches(config(*SQUARE, *opts)) == side


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["INPUT.TEST_RESIZE", "longest_edge"], "INPUT.TEST_RESIZE.*did you mean 'longest_side'"),
        (["TEST.SEMANTIC_WINDOWS", True, "INPUT.IMAGE_SIZE", 0], "IMAGE_SIZE is 0, expected"),
        (
            ["TEST.SEMANTIC_WINDOWS", True, "INPUT.TEST_RESIZE", "longest_side"],
            "resizes the shorter side .* set it to 'shortest_edge'",
        ),
        (["INPUT.TEST_RESIZE", "longest_side", "INPUT.IMAGE_SIZE", 0], "IMAGE_SIZE is 0"),
        (
            SQUARE,
            "64, but with INPUT.MIN_SIZE_TEST 800 and MAX_SIZE_TEST 1333 images can",
        ),
        ([*SQUARE, "INPUT.MIN_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST", 64], "MIN_SIZE_TEST 0"),
    ],
)
def test_bad_values_of_testing(opts: list[object], text: str) -> None:
    for check in (check_test_images, side_of_test_batches, side_of_windows, resize_in_testing):
        with pytest.raises(ConfigError, match=text):
            check(config(*opts))
    with pytest.raises(ConfigError, match=text):
        load_cfg("", [str(opt) for opt in opts], use_data=False)


@pytest.mark.parametrize(
    ("opts", "sizes", "resizing"),
    [
        ([], (800, 1333), "INPUT.MIN_SIZE_TEST is 800"),
        (["INPUT.MIN_SIZE_TEST", 0], (0, 1333), ""),
        (["INPUT.TEST_RESIZE", "longest_side"], (1024, 1024), "INPUT.TEST_RESIZE is longest_side"),
        (["TEST.SEMANTIC_WINDOWS", True], (1024, 0), ""),
    ],
)
def test_what_resizes_images(opts: list[object], sizes: tuple[int, int], resizing: str) -> None:
    assert sizes_of_test_images(config(*opts)) == sizes
    assert resizing_of_test_images(config(*opts)) == resizing


def test_an_unknown_padding() -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.PAD_VALUE 'blak'.*did you mean 'black'"):
        pads_black(config("INPUT.PAD_VALUE", "blak"))
    with pytest.raises(ConfigError, match=r"did you mean 'black'"):
        load_cfg("", ["INPUT.PAD_VALUE", "blak"], use_data=False)


@pytest.mark.parametrize(
    ("architecture", "is_warned"), [("SemanticSegmentor", True), ("EfficientPS", False)]
)
def test_a_model_that_pads_in_its_own_way(
    architecture: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    opts = ["MODEL.META_ARCHITECTURE", architecture, "INPUT.PAD_VALUE", "black"]
    load_cfg("", [*opts, "INPUT.PAD_TO_SQUARE", "True", "INPUT.IMAGE_SIZE", "1333"], use_data=False)
    text = "SemanticSegmentor pads its batches in its own way, whatever INPUT.PAD_VALUE and INPUT."
    assert (text in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("architecture", "opts"),
    [
        ("PanopticExtMaskFormer", ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"]),
        ("PanopticExtEoMT", ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True"]),
        ("PanopticExtMaskFormer", ["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"]),
        ("TransformersPanoptic", []),
        ("UnifiedPanopticFPN", []),
        ("EfficientPS", []),
    ],
)
def test_windows_of_a_model_with_segments(architecture: str, opts: list[str]) -> None:
    windows = ["MODEL.META_ARCHITECTURE", architecture, "TEST.SEMANTIC_WINDOWS", "True"]
    text = f"gives sem_seg alone.*but {architecture} does not with this config; set SEMANTIC_ON"
    with pytest.raises(ConfigError, match=text):
        load_cfg("", [*windows, *opts], use_data=False)


@pytest.mark.parametrize("architecture", ["PanopticExtMaskFormer", "SemanticSegmentor"])
def test_windows_of_a_semantic_model(architecture: str) -> None:
    opts = ["MODEL.META_ARCHITECTURE", architecture, "TEST.SEMANTIC_WINDOWS", "True"]
    opts += ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"]
    assert load_cfg("", opts, use_data=False).TEST.SEMANTIC_WINDOWS
