"""Names of the published PMT files."""

from __future__ import annotations

import pytest
import torch

from panoptic_ext.modeling.pmt.published_weights import from_published, is_published
from tests.modeling.pmt.published_names import published
from tests.modeling.pmt.test_decoder import decoder

pytest.importorskip("timm", reason="PMT's blocks are timm's")


def test_every_tensor_comes_back():
    ours = decoder().state_dict()
    file = published(ours)
    assert is_published(file)
    file["network.decoder.attn_mask_probs"] = torch.ones(2)
    before = dict(file)
    back = from_published(file)
    assert file == before
    assert {name.removeprefix("sem_seg_head.") for name in back} == ours.keys()
    for name, value in ours.items():
        assert torch.equal(back[f"sem_seg_head.{name}"], value), name


def test_our_own_names_stay():
    ours = {f"sem_seg_head.{name}": value for name, value in decoder().state_dict().items()}
    ours["backbone.net.blocks.0.attn.qkv.weight"] = torch.ones(1)
    assert not is_published(ours)
    assert from_published(ours) == ours


def test_a_block_without_one_of_its_projections_is_not_joined():
    file = published(decoder().state_dict())
    del file["network.decoder.blocks.1.attention.k_proj.weight"]
    back = from_published(file)
    assert "sem_seg_head.blocks.0.attn.qkv.weight" in back
    assert "sem_seg_head.blocks.1.attn.qkv.weight" not in back
    assert "sem_seg_head.blocks.1.attention.q_proj.weight" in back  # reported as unexpected
