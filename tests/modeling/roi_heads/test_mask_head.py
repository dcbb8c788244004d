"""Mask heads keep the logits of the predicted class beside Detectron2's masks."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from panoptic_ext.modeling.roi_heads import MaskLogitsConvUpsampleHead, SeparableMaskHead

HEADS = [MaskLogitsConvUpsampleHead, SeparableMaskHead]


def make_head(kind, num_classes=3, norm="", channels=8):
    torch.manual_seed(0)
    shape = ShapeSpec(channels=channels, height=14, width=14)
    dims = [channels] * 3
    head = kind(shape, num_classes=num_classes, conv_dims=dims, conv_norm=norm)
    nn.init.normal_(head.predictor.weight)
    return head


def detections(*counts):
    found = []
    for count in counts:
        instances = Instances((64, 64), pred_boxes=Boxes(torch.rand(count, 4)))
        instances.pred_classes = torch.arange(count) % 3
        found.append(instances)
    return found


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_classes", [3, 1])
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0), (1,)])
def test_logits_are_those_of_the_predicted_class(kind, num_classes, counts):
    head = make_head(kind, num_classes).eval()
    x, found = torch.randn(sum(counts), 8, 14, 14), detections(*counts)
    with torch.no_grad():
        head(x, found)
        every = head.layers(x)
    at = 0
    for instances, count in zip(found, counts, strict=True):
        assert instances.pred_mask_logits.shape == (count, 1, 28, 28)
        for i in range(count):
            channel = int(instances.pred_classes[i]) if num_classes > 1 else 0
            torch.testing.assert_close(instances.pred_mask_logits[i, 0], every[at, channel])
            at += 1
        torch.testing.assert_close(instances.pred_masks, instances.pred_mask_logits.sigmoid())


def test_the_standard_head_takes_detectron2s_weights_and_gives_its_masks():
    ours = make_head(MaskLogitsConvUpsampleHead)
    theirs = make_head(MaskRCNNConvUpsampleHead)
    theirs.load_state_dict(ours.state_dict())
    x, found, expected = torch.randn(3, 8, 14, 14), detections(1, 2), detections(1, 2)
    with torch.no_grad():
        ours.eval()(x, found)
        theirs.eval()(x, expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


def targets(*counts):
    given = []
    for count in counts:
        boxes = Boxes(torch.tensor([[4.0, 4, 30, 40]]).repeat(count, 1))
        masks = torch.zeros(count, 64, 64, dtype=torch.bool)
        masks[:, 10:20, 10:20] = True
        instances = Instances((64, 64), proposal_boxes=boxes, gt_masks=BitMasks(masks))
        instances.gt_classes = torch.arange(count) % 3
        given.append(instances)
    return given


@pytest.mark.parametrize("norm", ["", "BN", "SyncBN", "FrozenBN", "GN"])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_training_with_and_without_regions(norm, counts):
    head = make_head(SeparableMaskHead, norm=norm, channels=32).train()
    with EventStorage():
        loss = head(torch.randn(sum(counts), 32, 14, 14), targets(*counts))["loss_mask"]
    loss.backward()
    assert (loss.item() > 0) == (sum(counts) > 0)
    without = [n for n, p in head.named_parameters() if p.grad is None]
    assert without == []


def test_separable_parameters_and_activation():
    head = make_head(SeparableMaskHead, norm="GN", channels=32)
    names = {n.rsplit(".", 1)[0] for n, _ in head.named_parameters()}
    assert {"mask_fcn1.depthwise", "mask_fcn2.pointwise", "deconv", "predictor"} <= names
    assert head.mask_fcn1.depthwise.groups == 32
    assert isinstance(head.mask_fcn1.pointwise.activation, nn.LeakyReLU)
    assert len(head.conv_norm_relus) == 2
