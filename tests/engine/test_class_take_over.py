"""Weights of other classes: those of the same name keep what they learnt, in every head."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from detectron2.utils import comm
from torch import Tensor, nn

from panoptic_ext import model_zoo
from panoptic_ext.data.datasets.metadata_file import save_metadata
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.class_names import (
    classes_as_dict,
    classes_named,
    classes_of_checkpoint,
    classes_of_weights,
)
from panoptic_ext.engine.class_take_over import ClassTakeOver, plain_name, sources_of_classes
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.modeling.meta_arch.class_rows import class_layers_of
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses
from tests import ROOT
from tests.tiny.class_names import FAMILIES, build_family, register_names
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.train_in_process import train

pytestmark = pytest.mark.usefixtures("clean_catalogs")

OLD = (("sky", False), ("Traffic Light", True), ("person", True), ("tree", False), ("car", True))
NEW = (
    ("car", True), ("window", True), ("Sky", False), ("traffic-light", True), ("road", False),
    ("vegetation", False), ("shop", True),
)  # fmt: skip
ALIASES = {"vegetation": "tree"}
SOURCE = [4, None, 0, 1, None, 3, None]  # of NEW in OLD
OTHERS = (
    "class_embed",
    "class_head",
    "class_predictor",
    "cls_score",
)  # layers with a row behind those of the classes
THINGS = ("cls_score", "bbox_pred", "mask_head.predictor")


def dataset(classes: tuple[tuple[str, bool], ...], name: str = "") -> DatasetClasses:
    return DatasetClasses(name, tuple(t for _, t in classes), tuple(n for n, _ in classes))


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """The model that is trained, and the one that takes over its weights."""
    register_names("take_over_old", OLD)
    register_names("take_over_new", NEW)
    torch.manual_seed(0)
    return build_family(family, "take_over_old", OLD), build_family(family, "take_over_new", NEW)


def take_over(
    old: nn.Module, new: nn.Module, folder: Path, given: DatasetClasses | None = None, **rest: Any
) -> dict[str, Tensor]:
    """Load the weights of `old` into `new`; returns the tensors that `new` had before."""
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    classes = classes_as_dict(dataset(OLD, "take_over_old"))
    Checkpointer(old, str(folder)).save("old", **({"panoptic_ext": {"classes": classes}} | rest))
    path = str(folder / "old.pth")
    edit = ClassTakeOver(dataset(NEW, "take_over_new"), path, given, ALIASES)
    Checkpointer(new).load(path, checkpointables=[], edit=edit)
    return before


def places(classes: tuple[tuple[str, bool], ...], layer: str, rows: int) -> list[int]:
    """The classes of a layer in the order of its rows, found out independently."""
    per_class = 4 if layer.endswith("bbox_pred") else 1
    things_alone = layer.endswith(THINGS) or rows == sum(t for _, t in classes) + 1
    chosen = [k for k, (_, thing) in enumerate(classes) if thing or not things_alone]
    return [k for k in chosen for _ in range(per_class)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_of_its_class(family: str, tmp_path: Path) -> None:
    for package in {"transformers": ("transformers",), "eomt": ("timm",)}.get(family, ()):
        pytest.importorskip(package)
    old, new = pair(family)
    before = take_over(old, new, tmp_path)
    source, found = old.state_dict(), new.state_dict()
    layers = [name for name, _ in class_layers_of(new) if f"{name}.weight" in found]
    class_tensors = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for name in found:
        if name.endswith("criterion.empty_weight"):
            assert torch.equal(found[name], before[name])
        elif name not in class_tensors:
            assert torch.equal(found[name], source[name]), name
    for name in class_tensors:
        layer = name.rpartition(".")[0]
        others = 1 if layer.endswith(OTHERS) else 0
        old_rows = places(OLD, layer, len(source[name]))
        new_rows = places(NEW, layer, len(found[name]))
        assert len(found[name]) == len(new_rows) + others, name
        for row, k in enumerate(new_rows):
            offset = row - new_rows.index(k)
            if SOURCE[k] in old_rows:
                expected = source[name][old_rows.index(SOURCE[k]) + offset]
            else:
                expected = before[name][row]
            assert torch.equal(found[name][row], expected), (name, k)
        if others:
            assert torch.equal(found[name][-1], source[name][-1])


def test_logits_of_shared_classes_are_the_old_models(tmp_path: Path) -> None:
    old, new = pair("placed")
    take_over(old, new, tmp_path)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = old.outputs(images), new.outputs(images)
    kept = [k for k, j in enumerate(SOURCE) if j is not None]
    rows = [SOURCE[k] for k in kept]
    logits = found.pred_logits[..., [*kept, -1]]
    assert torch.allclose(logits, expected.pred_logits[..., [*rows, -1]], rtol=0, atol=1e-6)
    semantic = found.semantic_logits[:, kept]
    assert torch.allclose(semantic, expected.semantic_logits[:, rows], rtol=0, atol=1e-6)
    assert torch.equal(found.pred_masks.dense(), expected.pred_masks.dense())


def test_the_log_names_every_class_or_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO, "panoptic_ext")
    old, new = pair("instance")  # which has things alone
    take_over(old, new, tmp_path, panoptic_ext={})
    assert "name their data set: MODEL.WEIGHTS_CLASSES.DATASET" in caplog.text
    assert "class_embed has 4 rows, the model's 5" in caplog.text
    for given in (None, dataset(OLD, "take_over_old")):
        caplog.clear()
        take_over(old, new, tmp_path, given, **({"panoptic_ext": {}} if given else {}))
        assert (
            "Of the 7 classes of take_over_new, 2 are taken over from the 5 of the weights "
            "(take_over_old): car, traffic-light (from Traffic Light). 5 start fresh: window, Sky, "
            "road, vegetation, shop"
        ) in caplog.text
        assert "stay at their initial" not in caplog.text and "WEIGHTS_" not in caplog.text


def test_equal_classes_change_nothing(tmp_path: Path) -> None:
    weights = {"model": {"x": torch.ones(2)}}
    edit = ClassTakeOver(dataset(OLD), "", dataset(OLD), {})
    edit("", weights, nn.Identity())
    assert list(weights["model"]) == ["x"]
    other_case = tuple((name.upper(), thing) for name, thing in OLD)
    assert sources_of_classes(dataset(other_case), dataset(OLD), {}) == [0, 1, 2, 3, 4]


def test_names_by_hand() -> None:
    assert plain_name(" Traffic_light ") == plain_name("traffic-light") == "traffic light"
    new = dataset((("window", True), ("wall", False), ("door", True), ("lamp", True)))
    old = dataset(
        (("window-other", False), ("Wall", True), ("wall", False), ("door", False), ("lamp", True),
         ("LAMP", True))
    )  # fmt: skip
    # No guess for a window; the wall of the same kind; a door of another kind; two lamps.
    assert sources_of_classes(new, old, {}) == [None, 2, 3, None]
    assert sources_of_classes(new, old, {"Window": "window_other"}) == [0, 2, 3, None]


@pytest.mark.parametrize("aliases", [{"windw": "tree"}, {"window": "tre"}])
def test_aliases_of_no_class_are_refused(aliases: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        sources_of_classes(dataset(NEW), dataset(OLD), aliases)


def test_workers_without_the_metadata_move_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine the file, or the metadata beside it, may be missing."""
    old, new = pair("placed")
    monkeypatch.setattr(comm, "all_gather", lambda _: [dataset(OLD, "take_over_old"), None])
    take_over(old, new, tmp_path, panoptic_ext={})
    layer = "sem_seg_head.predictor.class_embed"
    before, after = (model.state_dict()[f"{layer}.weight"] for model in (old, new))
    car = places(OLD, layer, len(before)).index(4), places(NEW, layer, len(after)).index(0)
    assert torch.equal(after[car[1]], before[car[0]])


@pytest.mark.slow
def test_a_dry_run_finds_an_alias_of_no_class(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dry run loads the weights as the training does."""
    classes = {"panoptic_ext": {"classes": classes_as_dict(dataset(OLD, "old"))}}
    torch.save({"model": {"x": torch.zeros(1)}, **classes}, tmp_path / "old.pth")
    opts = {
        **NARROW_RESNET,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": tmp_path / "old.pth",
        "MODEL.WEIGHTS_CLASSES.ALIASES": ["circle=tre"],
        "DATASETS.SHAPES.CACHE": tmp_path / "cache",
        "DATASETS.SHAPES.NUM_TRAIN": 2,
        "DATASETS.SHAPES.NUM_VAL": 1,
        "OUTPUT_DIR": tmp_path / "run",
    }
    words = [str(word) for pair in opts.items() for word in pair]
    config = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")
    assert train(["--config-file", config, "--dry-run", *words]) == 2
    assert "unknown class of the weights in MODEL.WEIGHTS_CLASSES.ALIASES" in capfd.readouterr().err


def test_coco_to_cityscapes() -> None:
    """The real lists of names."""
    tables = (
        [(c["name"], bool(c["isthing"])) for c in table]
        for table in (CITYSCAPES_CATEGORIES, COCO_CATEGORIES)
    )
    cityscapes, coco = (dataset(tuple(table)) for table in tables)
    sources = sources_of_classes(cityscapes, coco, {"vegetation": "tree-merged"})
    taken = {
        name: coco.names[j]
        for name, j in zip(cityscapes.names, sources, strict=True)
        if j is not None
    }
    same = ("road", "traffic light", "person", "car", "truck", "bus", "train", "motorcycle")
    assert taken == {**{n: n for n in (*same, "bicycle")}, "vegetation": "tree-merged"}
    named = classes_named("coco_panoptic_val")
    assert (named.names, named.isthing) == (coco.names, coco.isthing)


def test_where_classes_of_weights_are_found(tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    assert classes_of_weights(path, path, {}) is None
    register_names("take_over_old", OLD)
    from detectron2.data import MetadataCatalog

    save_metadata(MetadataCatalog.get("take_over_old"), str(tmp_path / "metadata.json"))
    assert classes_of_weights(path, path, {}) == dataset(OLD, "take_over_old")
    run = {"panoptic_ext": {"classes": classes_as_dict(dataset(NEW, "other"))}}
    found = classes_of_weights(path, path, run)
    assert found is not None and found.names == tuple(name for name, _ in NEW)
    (tmp_path / "metadata.json").write_text(json.dumps({"of": "another program"}))
    assert classes_of_weights(path, path, {}) is None
    zoo = classes_of_weights("zoo://mask2former_R50_coco", path, {})
    assert zoo is not None and zoo.num_classes == 133 and zoo.names[0] == "person"
    address = model_zoo.get_checkpoint_url("mask2former_R50_coco")
    assert address.startswith("https://") and classes_of_weights(address, path, {}) == zoo
    assert classes_of_weights("zoo://backbones/efficientnet_lite0", path, {}) is None
    with pytest.raises(DatasetError):
        classes_named("no_such_data_set")


@pytest.mark.parametrize("content", [3, {"names": ["a"], "isthing": [True, False]}, {"names": 1}])
def test_damaged_classes_of_a_checkpoint_are_no_classes(content: Any) -> None:
    assert classes_of_checkpoint({"panoptic_ext": {"classes": content}}) is None
