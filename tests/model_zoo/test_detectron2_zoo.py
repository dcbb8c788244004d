"""`detectron2.model_zoo` answers our names, and its own as before."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.shipped import shipped_config
from panoptic_ext.model_zoo import detectron2_zoo

NAME = "mask2former_R50_coco"
CONFIG = "coco/mask2former/mask2former_R50_bs16_50ep.yaml"
THEIRS = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"
MODULES = (model_zoo, model_zoo.model_zoo)


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    detectron2_zoo.install()
    yield
    detectron2_zoo.install()


def originals() -> dict[str, Any]:
    detectron2_zoo.uninstall()
    found = {name: getattr(model_zoo, name) for name in detectron2_zoo.FUNCTIONS}
    detectron2_zoo.install()
    return found


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yaml", CONFIG, CONFIG.removesuffix(".yaml")])
def test_answers_our_names(name: str) -> None:
    assert model_zoo.get_config_file(name) == shipped_config(CONFIG)
    address = model_zoo.get_checkpoint_url(name)
    assert address.startswith("https://") and address.endswith("model_final_94dc52.pkl")
    cfg = model_zoo.get_config(name, trained=True)
    assert f"zoo://{NAME}" == cfg.MODEL.WEIGHTS and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    cfg.MODEL.DEVICE = "cpu"  # as with Detectron2's, not frozen
    assert model_zoo.get_config(name).MODEL.WEIGHTS.endswith("R-50.pkl")


def test_the_way_of_detectron2s_tutorials() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(NAME))
    cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(NAME)
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticExtMaskFormer"


def answer(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or the class and the text of its error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # whichever it is: two answers are compared
        return type(error), str(error)


@pytest.mark.parametrize(
    "name",
    [THEIRS, THEIRS.removesuffix(".yaml"), "COCO-Keypoints/none.yaml", "", None, "a/b.yaml"],
)
def test_answers_detectron2s_names_as_before(name: Any) -> None:
    before = originals()
    for function in ("get_config_file", "get_checkpoint_url", "get_config"):
        now = answer(getattr(model_zoo, function), name)
        assert now == answer(before[function], name), function


def test_replaces_the_functions_in_both_modules_and_restores_them() -> None:
    before = originals()
    for module in MODULES:
        for name, original in before.items():
            ours = getattr(module, name)
            assert ours.__wrapped__ is original
            assert inspect.signature(ours) == inspect.signature(original)
            assert (ours.__module__, ours.__doc__) == (original.__module__, original.__doc__)
    installed = model_zoo.get
    detectron2_zoo.install()
    assert model_zoo.get is installed, "a second call changes nothing"
    for _ in range(2):
        detectron2_zoo.uninstall()
        for module in MODULES:
            assert {name: getattr(module, name) for name in before} == before


def test_a_function_of_another_package_stays() -> None:
    detectron2_zoo.uninstall()
    original, other = model_zoo.get_config, lambda config_path: "theirs"
    model_zoo.get_config = other
    try:
        detectron2_zoo.install()
        assert model_zoo.get_config is other
        assert model_zoo.model_zoo.get_config is not original
        detectron2_zoo.uninstall()
        assert model_zoo.get_config is other and model_zoo.model_zoo.get_config is original
    finally:
        model_zoo.get_config = original


def test_an_unknown_name_is_detectron2s_error_and_names_a_similar_entry() -> None:
    for function in detectron2_zoo.FUNCTIONS:
        with pytest.raises(RuntimeError, match="available") as caught:
            getattr(model_zoo, function)("mask2former_R50_coc")
        assert str(caught.value).count("did you mean") == 1
        assert repr(NAME) in str(caught.value)


def test_a_shipped_config_without_weights() -> None:
    name = "coco/mask2former/mask2former_semantic_R50_bs16_50ep.yaml"
    cfg = model_zoo.get_config(name)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    for call in (model_zoo.get_checkpoint_url, lambda n: model_zoo.get_config(n, trained=True)):
        with pytest.raises(RuntimeError, match=r"Pretrained model for .* is not available!"):
            call(name)


def test_a_function_imported_before() -> None:
    """`get` serves our names, because it calls `get_config` by the module; the others do not."""
    before = originals()
    called = []
    get_config = model_zoo.model_zoo.get_config
    model_zoo.model_zoo.get_config = lambda *args: called.append(args) or get_config(*args)
    try:
        with pytest.raises(RuntimeError, match="Invalid device string"):
            before["get"](NAME, True, "no such device")
    finally:
        model_zoo.model_zoo.get_config = get_config
    assert called == [(NAME, True)]


def test_a_detectron2_whose_zoo_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of main needs pkg_resources, which the newest setuptools do not have."""
    detectron2_zoo.uninstall()
    monkeypatch.setitem(sys.modules, "detectron2.model_zoo", None)
    detectron2_zoo.install()
    detectron2_zoo.uninstall()
    monkeypatch.undo()
    detectron2_zoo.install()
    assert model_zoo.get_checkpoint_url(NAME).startswith("https://")
