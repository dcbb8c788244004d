"""Bad values of the keys of test sizes and padding: one clear error each, from every door."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.config.image_values import check_test_images, pads_black, side_of_test_batches
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


@pytest.mark.parametrize(
    ("opts", "side"),
    [
        (["INPUT.TEST_RESIZE", "longest_side"], 64),
        (["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64], 64),
        (["TEST.SEMANTIC_WINDOWS", 64], 64),
        (["TEST.SEMANTIC_WINDOWS", 32], 64),
    ],
)
def test_squares_that_every_image_fits_in(opts: list[object], side: int) -> None:
    assert side_of_test_batches(config(*SQUARE, *opts)) == side


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["INPUT.TEST_RESIZE", "longest_edge"], "INPUT.TEST_RESIZE.*did you mean 'longest_side'"),
        (["TEST.SEMANTIC_WINDOWS", -1], "SEMANTIC_WINDOWS is -1, expected pixels"),
        (
            ["TEST.SEMANTIC_WINDOWS", 64, "INPUT.TEST_RESIZE", "longest_side"],
            "resizes the shorter side .* set it to 'shortest_edge'",
        ),
        (["INPUT.TEST_RESIZE", "longest_side", "INPUT.IMAGE_SIZE", 0], "IMAGE_SIZE is 0"),
        (SQUARE, "IMAGE_SIZE 64, but with INPUT.MIN_SIZE_TEST 800, MAX_SIZE_TEST 1333 images can"),
        ([*SQUARE, "INPUT.MIN_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST", 64], "MIN_SIZE_TEST 0"),
        ([*SQUARE, "TEST.SEMANTIC_WINDOWS", 65], "but with TEST.SEMANTIC_WINDOWS 65 images can"),
    ],
)
def test_bad_values_of_testing(opts: list[object], text: str) -> None:
    for check in (check_test_images, side_of_test_batches, resize_in_testing):
        with pytest.raises(ConfigError, match=text):
            check(config(*opts))
    with pytest.raises(ConfigError, match=text):
        load_cfg("", [str(opt) for opt in opts], use_data=False)


def test_an_unknown_padding() -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.PAD_VALUE 'blak'.*did you mean 'black'"):
        pads_black(config("INPUT.PAD_VALUE", "blak"))
