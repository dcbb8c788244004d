"""SOLVER.ACCUMULATION_STEPS: a batch in parts gives the losses and gradients of the whole batch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.yaml_reader import merge_settings, read_file
from panoptic_ext.engine import TrainLoader
from panoptic_ext.engine.accumulation import slices_of
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError, NonFiniteLossError
from panoptic_ext.modeling.backbone.freezing import freeze_parameters
from tests import ROOT
from tests.tiny import accumulated_step, eomt, mask_former
from tests.tiny.accumulated_step import frozen, in_double, step_of
from tests.tiny.model_inputs import IS_THING, NARROW_RESNET, fake_input, fake_metadata
from tests.tiny.training import TinyTrainer, tiny_cfg, tiny_mapper, tiny_records

NAME = mask_former.NAME
NUM_THINGS = sum(IS_THING)


@pytest.fixture(scope="module", autouse=True)
def _metadata() -> Iterator[None]:
    fake_metadata(NAME)
    yield
    MetadataCatalog.remove(NAME)


def assert_parts_equal_the_batch(
    model: nn.Module, batch: list[dict[str, Any]], number: int
) -> None:
    """In float64, where rounding is far below 1e-6 and moves no box over the edge of a pixel."""
    model.double()
    before = copy.deepcopy(model.state_dict())
    with in_double():
        losses, gradients = step_of(model, batch, 1)
        losses_of_parts, gradients_of_parts = step_of(model, batch, number)
    assert losses_of_parts == pytest.approx(losses, rel=1e-12)
    assert gradients_of_parts.keys() == gradients.keys()
    for name, gradient in gradients.items():
        error = (gradients_of_parts[name] - gradient).norm()
        assert gradient.dtype == torch.float64, name
        # The gradient of some parameters is 0 but for rounding.
        assert error <= 1e-10 * gradient.norm() + 1e-14, (name, float(error))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.fixture
def equal_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", accumulated_step.equal_points)


# Numbers of segments that differ much, one image without any, and sizes that differ.
SEGMENTS = [1, 5, 0, 3]
SIZES = [(64, 96), (96, 64), (64, 64), (32, 96)]


def query_batch() -> list[dict[str, Any]]:
    return [
        mask_former.mapped(size, num, seed)
        for seed, (size, num) in enumerate(zip(SIZES, SEGMENTS, strict=True))
    ]


@pytest.mark.usefixtures("equal_points")
@pytest.mark.parametrize(
    "changes",
    [
        {
            "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 2.0,
            "MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": 0.5,
            "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 4,
        },
        {
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "PlacedQueryTransformerDecoder",
            "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 2.0,
            "MODEL.MASK_FORMER.CLASS_BALANCE": 0.5,
        },
    ],
    ids=["published decoder", "placed queries"],
)
def test_mask2former(changes: dict[str, Any]) -> None:
    model = frozen(mask_former.build(**{"MODEL.RESNETS.NORM": "FrozenBN", **changes}))
    assert_parts_equal_the_batch(model, query_batch(), 3)


@pytest.mark.usefixtures("equal_points")
def test_pmt() -> None:
    """EoMT is compared on two workers, in test_trainer.py."""
    pytest.importorskip("timm", reason="the plain ViT is a timm model")
    # The random scale of positions is drawn for each part.
    changes = {"MODEL.META_ARCHITECTURE": "PanopticExtPMT", "MODEL.PMT.ROPE_RESCALE": 0.0}
    model = eomt.build(**changes, **{"MODEL.VIT.DEPTH": 2, "MODEL.PMT.NUM_LAYERS": 2})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    freeze_parameters(model, (), norms)  # lateral connections normalise by the batch
    assert_parts_equal_the_batch(model, query_batch()[:3], 2)


def detector(kind: str, *, norms: str = "", **changes: Any) -> nn.Module:
    """A small detector, whose norms are frozen unless `norms` is "BN"."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    folder = "efficientps" if kind == "EfficientPS" else "panoptic_fpn"
    base = "EfficientPS" if kind == "EfficientPS" else "PanopticFPN"
    merge_settings(cfg, read_file(str(ROOT / f"configs/common/{folder}/Base-{base}-Small.yaml")))
    cfg.MODEL.META_ARCHITECTURE = kind
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.TWO_WAY_FPN.OUT_CHANNELS = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.DPC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(IS_THING)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_THINGS
    cfg.DATASETS.TRAIN = (NAME,)
    for key, value in {**NARROW_RESNET, **changes}.items():
        cfg.merge_from_list([key, value])
    torch.manual_seed(0)
    model = build_model(cfg)
    return model if norms else frozen(model)


def detector_batch(sizes: list[tuple[int, int]], *, separated: bool = False) -> list[dict]:
    """Images with 1, 4 and 0 things, the last one without a labelled pixel.

    Args:
        sizes: of the images.
        separated: classes as Detectron2's own models count them.
    """
    batch = []
    for seed, (size, num) in enumerate(zip(sizes, (1, 4, 0), strict=True)):
        inputs = fake_input(num, size, seed, void=num == 0)
        inputs["sem_seg"][: 8 * seed] = 255  # shares of pixels that differ from those of images
        if separated:
            inputs["instances"].gt_classes = torch.arange(num) % NUM_THINGS
        batch.append(inputs)
    return batch


MIXED = [(64, 96), (96, 64), (64, 64)]
EQUAL = [(64, 96)] * 3


@pytest.mark.parametrize("kind", ["UnifiedPanopticFPN", "EfficientPS"])
def test_panoptic_fpn_and_efficientps(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Samples are random and few: the parts draw those of the whole batch."""
    logging.getLogger("panoptic_ext").propagate = True
    few = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 24}
    assert_parts_equal_the_batch(detector(kind, **few), detector_batch(MIXED), 3)
    assert "ACCUMULATION_STEPS" not in caplog.text


CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("PanopticFPN", CASCADE), ("GeneralizedRCNN", {})],
    ids=["Panoptic FPN with a cascade", "Mask R-CNN"],
)
def test_models_of_detectron2(kind: str, changes: dict[str, Any]) -> None:
    changes = {
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 24,
        **changes,
    }
    batch = detector_batch(EQUAL, separated=True)
    assert_parts_equal_the_batch(detector(kind, **changes), batch, 3)


def test_a_fusion_that_learns_and_norms_of_the_batch() -> None:
    """The first pass over the parts, which finds proposals, changes no statistics of norms."""
    changes = {"MODEL.PANOPTIC_FUSION.NAME": "spatial_ranking"}
    model = detector("UnifiedPanopticFPN", norms="BN", **changes)
    batch, counts = detector_batch(MIXED)[:2], []
    for steps in (1, 2):
        losses, gradients = step_of(model, batch, steps)
        assert all(math.isfinite(loss) for loss in losses.values()) and gradients
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        counts.append({int(norm.num_batches_tracked) for norm in norms})
        assert all(norm.track_running_stats for norm in norms)
    assert counts == [{1}, {3}]
    assert "label_and_sample_anchors" not in vars(model.proposal_generator)


@given(number=st.integers(1, 40), parts=st.integers(1, 50))
def test_slices_are_all_images_in_even_parts(number: int, parts: int) -> None:
    slices = slices_of(number, parts)
    images = list(range(number))
    assert [i for part in slices for i in images[part]] == images
    sizes = [len(images[part]) for part in slices]
    assert len(slices) == min(parts, number) and max(sizes) - min(sizes) <= 1


def test_other_models_are_averaged_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    TinyTrainer(tiny_cfg(tmp_path, ACCUMULATION_STEPS=2, MAX_ITER=3)).train()
    assert caplog.text.count("loss_a, loss_b of PanopticExtTestTiny are averaged over") == 1


class BadSecondPart(TinyTrainer):
    """The loss of the last image is infinite."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        def mapper(record: dict[str, Any]) -> dict[str, Any]:
            is_last = record["image_id"] == 3
            return {**tiny_mapper(record), "bad": float("inf") if is_last else 0.0}

        sampler = TrainingSampler(4, shuffle=False)
        return TrainLoader(
            tiny_records(4),
            mapper,
            batch_size=4,
            seed=1,
            aspect_ratio_grouping=False,
            make_sampler=lambda _: sampler,
        )


def test_an_infinite_loss_of_one_part_changes_nothing(tmp_path: Path) -> None:
    trainer = BadSecondPart(tiny_cfg(tmp_path, ACCUMULATION_STEPS=2))
    before = copy.deepcopy(dict(trainer.model.named_parameters()))
    with pytest.raises(NonFiniteLossError, match=r"iteration 0, on worker 0: loss_a = inf"):
        trainer.train()
    after = trainer.model.named_parameters()
    assert all(torch.equal(before[name], value) for name, value in after)


def test_more_parts_than_images_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"ACCUMULATION_STEPS = 17 parts of a batch, expected at"):
        load_cfg("", ["SOLVER.ACCUMULATION_STEPS", "17"], use_data=False)
