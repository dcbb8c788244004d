"""Parameters of EfficientPS agree with the paper, tensors of Mask2Former with its checkpoint."""

from __future__ import annotations

import re

import pytest
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext.commands import parameter_table
from panoptic_ext.engine.run_config import load_cfg
from tests.modeling.meta_arch.test_mask2former_state_dict import published

FOLDER = "configs/cityscapes/efficientps"
PAPER = f"{FOLDER}/efficientps_B5_paper_cityscapes.yaml"


def separable(in_channels, out_channels):
    """A depthwise 3x3 convolution, a 1x1 convolution, a norm."""
    return 9 * in_channels + in_channels * out_channels + 2 * out_channels


def expected_parts(classes=19, things=8):
    """Everything behind the backbone, counted from the description of the network."""
    taps = (40, 64, 176, 2048)
    dpc = 5 * separable(256, 256) + 5 * 256 * 128 + 2 * 128
    lsfe, mc = separable(256, 128) + separable(128, 128), 2 * separable(128, 128)
    return {
        "FPN": 2 * sum(c * 256 + 2 * 256 for c in taps) + 4 * separable(256, 256),
        "semantic head": 2 * (dpc + lsfe + mc) + 512 * classes + classes,
        "RPN": separable(256, 256) + (256 + 1) * 3 * (1 + 4),
        "box head": (256 * 49 + 1) * 1024
        + (1024 + 1) * 1024
        + (1024 + 1) * (things + 1 + 4 * things),
        "mask head": 4 * separable(256, 256) + (4 * 256 + 0) * 256 + 256 + (256 + 1) * things,
    }


def test_b5_as_in_the_paper_has_40_4_million():
    pytest.importorskip("timm")
    model = build_model(load_cfg(PAPER, ["MODEL.DEVICE", "cpu"]))
    counts = parameter_table.count_parameters(model)
    assert {part: counts[part] for part in expected_parts()} == expected_parts()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["total"] / 1e6 == pytest.approx(40.4, abs=0.05)
    assert set(counts) == {"backbone", *expected_parts(), "total"}
    shapes = model.backbone.bottom_up.output_shape().values()
    assert [(s.stride, s.channels) for s in shapes] == [(4, 40), (8, 64), (16, 176), (32, 2048)]
    shapes = model.backbone.output_shape()
    assert [(n, s.stride, s.channels) for n, s in shapes.items()] == [
        ("p2", 4, 256), ("p3", 8, 256), ("p4", 16, 256), ("p5", 32, 256)
    ]  # fmt: skip


def cell_anchors(model):
    return list(model.proposal_generator.anchor_generator.cell_anchors)


def test_the_anchors_are_eight_times_the_stride_in_three_shapes():
    pytest.importorskip("timm")
    options = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "efficientnet_b0"]
    cells = cell_anchors(build_model(load_cfg(PAPER, options)))
    for stride, cell in zip((4, 8, 16, 32), cells, strict=True):
        width, height = (cell[:, 2:] - cell[:, :2]).unbind(dim=1)
        assert (width * height).sqrt().tolist() == pytest.approx([8 * stride] * 3, rel=1e-4)
        assert (height / width).tolist() == pytest.approx([0.5, 1.0, 2.0], rel=1e-4)


def test_the_command_prints_a_row_for_each_config(capsys):
    path = "configs/shapes/efficientps/efficientps_R18_shapes.yaml"
    other = "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"
    assert parameter_table.main([path, other]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "FPN" in lines[0] and "efficientps_R18_shapes" in lines[2] and len(lines) == 4


def test_tensors_equal_those_of_the_published_model(capsys):
    path = "configs/coco/mask2former/mask2former_R50_bs16_50ep.yaml"
    assert parameter_table.main(["--tensors", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mask2former_R50_bs16_50ep" and lines[-1] == "558 tensors"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0] == ["tensor", "shape"]
    found = {name: tuple(map(int, shape.split(" x "))) for name, shape in rows[2:]}
    assert found == published()


def test_learning_rates_of_every_parameter(capsys):
    path = "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"
    options = {
        "SOLVER.BASE_LR": 0.01, "SOLVER.LAYER_DECAY": 0.5, "SOLVER.LAYER_DECAY_FREE_BLOCKS": 2,
        "SOLVER.WARMUP_ITERS": 10, "SOLVER.BACKBONE_WARMUP_ITERS": 20,
        "SOLVER.BACKBONE_MULTIPLIER": 0.1, "MODEL.BACKBONE.FREEZE_AT": 1,
    }  # fmt: skip
    opts = [str(part) for pair in options.items() for part in pair]
    assert parameter_table.main(["--learning-rates", path, "--opts", *opts]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    headers = ["parameter", "shape", "factor", "learning rate", "weight decay", "warm-up"]
    assert rows[0] == headers
    found = {name: tuple(cells) for name, _, *cells in rows[2:]}
    assert found["backbone.bottom_up.stem.conv1.weight"] == ("frozen", "", "", "")
    decay = found["sem_seg_head.predictor.weight"][2]
    block2, block6, block7, lateral, head = (
        found[f"{name}.weight"]
        for name in (
            "backbone.bottom_up.res3.0.conv1", "backbone.bottom_up.res5.0.conv1",
            "backbone.bottom_up.res5.1.conv1", "backbone.fpn_lateral5", "sem_seg_head.predictor",
        )
    )  # fmt: skip
    assert block2 == ("0.003125", "3.125e-05", decay, "10 to 30")
    assert block6 == block7 == ("0.1", "0.001", decay, "10 to 30")
    assert lateral == ("1", "0.01", decay, "0 to 10")
    assert head == ("1", "0.01", decay, "0 to 10")
    trained, listed = re.match(r"(\d+) of (\d+) parameters are trained, in", lines[-1]).groups()
    assert int(listed) == len(found)
    assert int(trained) == sum(cells[0] != "frozen" for cells in found.values())


def test_tensors_and_learning_rates_are_two_lists(capsys):
    with pytest.raises(SystemExit):
        parameter_table.main(["--tensors", "--learning-rates", "x.yaml"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_scalar_has_a_row_too():
    listed = parameter_table.list_tensors(nn.BatchNorm2d(3))
    assert listed.splitlines()[-1] == "5 tensors"
    row = next(line for line in listed.splitlines() if "num_batches_tracked" in line)
    assert row.split("|")[2].strip() == "scalar"


def test_a_missing_config_is_an_error(capsys):
    assert parameter_table.main(["configs/none.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
