"""Detectron2's published Panoptic FPNs, on contiguous ids: the same map, 0 pixels differ."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from panoptic_ext import model_zoo
from panoptic_ext.data.datasets.metadata import dataset_ids
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.meta_arch import separated_ids
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses
from tests.tiny.model_inputs import fake_metadata

pytestmark = pytest.mark.usefixtures("clean_catalogs")

SEPARATED = MetadataCatalog.get("coco_2017_val_panoptic_separated")
SMALL = (
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
)  # fmt: skip


def cfg_of(*options: str) -> CfgNode:
    """The entry of the zoo on the CPU, with fewer regions than it has."""
    cfg = model_zoo.get_config("panoptic_fpn_R50_1x_coco")
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", "150",
         "TEST.DETECTIONS_PER_IMAGE", "25", *options]
    )  # fmt: skip
    return cfg


def detectron2s(cfg: CfgNode) -> nn.Module:
    """Detectron2's own model of the same architecture, with random weights that find something."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(SEPARATED.stuff_classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SEPARATED.thing_classes)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, module in model.named_modules():
        if name.endswith(("conv3.norm", "conv2.norm")):
            # Activations stay small. A power of 2, so that folding it into the weights is exact.
            module.weight.data.fill_(0.25)
    box = model.roi_heads.box_predictor
    nn.init.normal_(box.cls_score.weight, std=0.03)
    nn.init.normal_(box.bbox_pred.weight, std=0.002)
    return model


def photographs(height: int) -> list[dict[str, Any]]:
    """A photograph and its mirror image, as the model takes them, at other output sizes."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    image = Image.open(path).convert("RGB").resize((height * 512 // 600, height))
    pixels = torch.from_numpy(np.array(image)[:, :, ::-1].copy()).permute(2, 0, 1)
    return [
        {"image": pixels, "height": 300, "width": 256},
        {"image": pixels.flip(2), "height": 181, "width": 140},
    ]


def let_things_win(model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    """Raise the bias of the channel of all things until it is the best of a third of the pixels."""
    with torch.no_grad():
        sem_seg = model.sem_seg_head(model.backbone(model.preprocess_image(inputs).tensor))[0][0]
        lead = sem_seg[1:].amax(0) - sem_seg[0]
        model.sem_seg_head.predictor.bias[0] += lead.flatten()[::7].quantile(0.33)


def dataset_segments(result: Any, dataset_id: Callable[[dict], int]) -> list[tuple]:
    """Id, the data set's id of the class, kind and score of each segment."""
    return [(s["id"], dataset_id(s), s["isthing"], s.get("score")) for s in result[1]]


def dataset_id_separated(segment: dict[str, Any]) -> int:
    things = {v: k for k, v in SEPARATED.thing_dataset_id_to_contiguous_id.items()}
    stuff = {v: k for k, v in SEPARATED.stuff_dataset_id_to_contiguous_id.items()}
    return (things if segment["isthing"] else stuff)[segment["category_id"]]


def test_the_map_is_that_of_detectron2s_model() -> None:
    # Another layout rounds differently, too: scores would differ in the last digit.
    layout = ("MODEL.CHANNELS_LAST", "False")
    cfg = cfg_of("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "128", *layout)
    inputs = photographs(160)
    theirs = detectron2s(cfg)
    let_things_win(theirs, inputs[:1])
    ours, state = build_model(cfg).eval(), theirs.state_dict()
    ours.adapt_state_dict(state, "")
    assert not ours.load_state_dict(state).missing_keys
    # Ours folds the frozen norms into the convolutions, which rounds differently: a few pixels.
    ours.backbone = theirs.backbone
    ids = dataset_ids(MetadataCatalog.get(cfg.DATASETS.TEST[0]))
    with torch.no_grad():
        pairs = list(zip(ours(inputs), theirs(inputs), strict=True))
    for found, expected in pairs:
        theirs_map, ours_map = expected["panoptic_seg"], found["panoptic_seg"]
        assert int((ours_map[0] != theirs_map[0]).sum()) == 0
        wanted = dataset_segments(theirs_map, dataset_id_separated)
        assert dataset_segments(ours_map, lambda s: ids[s["category_id"]]) == wanted
        assert {kind for _, _, kind, _ in wanted} == {True, False} and len(wanted) > 5
        check_semantic(found, expected["sem_seg"].argmax(0))


def check_semantic(found: dict[str, Any], labels: Tensor) -> None:
    """Stuff is the same; a thing's pixels have the class of their segment, or one of stuff."""
    best = found["sem_seg"].argmax(0)
    panoptic, segments = found["panoptic_seg"]
    class_of = {s["id"]: s["category_id"] for s in segments if s["isthing"]}
    channels = torch.tensor(separated_ids.detectron2_channels(coco()))
    stuff = labels > 0
    assert 0.1 < stuff.float().mean() < 0.9
    assert torch.equal(channels[best][stuff], labels[stuff])
    is_thing = channels[best] == 0
    assert is_thing.any()
    pixels = torch.stack([panoptic[is_thing].long(), best[is_thing]], dim=1).unique(dim=0)
    assert all(class_of[number] == category for number, category in pixels.tolist())


def coco() -> DatasetClasses:
    metadata = MetadataCatalog.get("coco_panoptic_val")
    return DatasetClasses("coco", tuple(metadata.isthing), tuple(metadata.thing_classes))


def test_channels_are_those_of_detectron2s_metadata() -> None:
    classes, channels = coco(), separated_ids.detectron2_channels(coco())
    things = SEPARATED.thing_dataset_id_to_contiguous_id
    for contiguous, dataset_id in enumerate(dataset_ids(MetadataCatalog.get("coco_panoptic_val"))):
        if classes.isthing[contiguous]:
            assert channels[contiguous] == 0
            assert classes.thing_ids.index(contiguous) == things[dataset_id]
        else:
            stuff = SEPARATED.stuff_dataset_id_to_contiguous_id[dataset_id]
            assert channels[contiguous] == stuff and SEPARATED.stuff_classes[stuff]


def test_other_classes_have_no_channels() -> None:
    names = list(coco().names)
    names[3] = "other"
    other = DatasetClasses("other", coco().isthing, tuple(names))
    assert separated_ids.detectron2_channels(other) is None
    assert separated_ids.detectron2_channels(DatasetClasses("unknown", coco().isthing)) is None


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[CfgNode, nn.Module]]:
    cfg = cfg_of(*SMALL)
    yield cfg, detectron2s(cfg)


def published(model: nn.Module, path: Path) -> str:
    """A file as in Detectron2's model zoo."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with open(path, "wb") as stream:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, stream)
    return str(path)


def test_a_published_file_loads_whole(small: Any, tmp_path: Path, caplog: Any) -> None:
    cfg, theirs = small
    path = published(theirs, tmp_path / "model_final_dbfeb4.pkl")
    ours = build_model(cfg).eval()
    with caplog.at_level("INFO", "panoptic_ext"):
        Checkpointer(ours).load(path, strict=True)
    assert "54 semantic channels became 133" in caplog.text
    assert separated_ids.shares_thing_channel(ours.sem_seg_head, ours.thing_ids)
    again = build_model(cfg)
    Checkpointer(ours, str(tmp_path)).save("ours")
    Checkpointer(again).load(str(tmp_path / "ours.pth"), strict=True)
    assert torch.equal(again.sem_seg_head.predictor.weight, ours.sem_seg_head.predictor.weight)


@pytest.mark.parametrize("name", ["heuristic_detectron2", "hadamard", "upsnet"])
def test_every_fusion_takes_the_shared_channel(small: Any, name: str) -> None:
    cfg, theirs = small[0].clone(), small[1]
    cfg.MODEL.PANOPTIC_FUSION.NAME = name
    ours, state = build_model(cfg).eval(), theirs.state_dict()
    ours.adapt_state_dict(state, "")
    ours.load_state_dict(state)
    with torch.no_grad():
        panoptic, segments = ours(photographs(96)[:1])[0]["panoptic_seg"]
    assert set(panoptic.unique().tolist()) - {0} == {s["id"] for s in segments}


def test_trained_weights_share_no_channel(small: Any) -> None:
    cfg, _ = small
    ours = build_model(cfg)
    assert not separated_ids.shares_thing_channel(ours.sem_seg_head, ours.thing_ids)


def test_other_classes_get_the_ordinary_error(small: Any, tmp_path: Path) -> None:
    cfg, theirs = small[0].clone(), small[1]
    isthing = coco().isthing
    fake_metadata("fake_133_classes", isthing)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("fake_133_classes",)
    path = published(theirs, tmp_path / "model.pkl")
    try:
        with pytest.raises(CheckpointError, match=r"sem_seg_head.predictor.weight is \(54, 32"):
            Checkpointer(build_model(cfg)).load(path, strict=True)
    finally:
        MetadataCatalog.remove("fake_133_classes")


@given(seed=st.integers(0, 10**6), things=st.integers(2, 5), stuff=st.integers(1, 5))
def test_the_best_class_is_the_same(seed: int, things: int, stuff: int) -> None:
    """Of logits, channel by channel, and of the logits that the changed convolution gives."""
    rng = np.random.default_rng(seed)
    isthing = rng.permutation([True] * things + [False] * stuff).tolist()
    order = iter(range(1, stuff + 1))
    channels = [0 if thing else next(order) for thing in isthing]
    separated, contiguous = nn.Conv2d(4, stuff + 1, 1), nn.Conv2d(4, things + stuff, 1)
    nn.init.normal_(separated.weight, generator=torch.Generator().manual_seed(seed))
    state: dict[str, Any] = {f"head.{n}": t.numpy() for n, t in separated.state_dict().items()}
    assert separated_ids.to_contiguous_channels(state, "head.", channels)
    contiguous.load_state_dict({n.removeprefix("head."): t for n, t in state.items()})
    features = torch.from_numpy(rng.normal(size=(1, 4, 5, 6))).float()
    with torch.no_grad():
        expected, found = separated(features)[0].argmax(0), contiguous(features)[0].argmax(0)
    assert torch.equal(torch.tensor(channels)[found], expected)
