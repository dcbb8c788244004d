"""The masked-attention layers against a naive version: loops over images, heads and queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from panoptic_ext.modeling.transformer_decoder.layers import (
    Attention,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)
from panoptic_ext.modeling.transformer_decoder.masked_transformer_decoder import (
    attention_mask,
)
from panoptic_ext.modeling.transformer_decoder.outputs import mask_logits

DIM, HEADS = 12, 3


def naive_attention(layer, query, key, value, allowed):
    """One image: lists of vectors; `allowed[q]` is the set of keys that query q may attend to."""
    size = DIM // HEADS
    weight, bias = layer.in_proj_weight.double(), layer.in_proj_bias.double()
    rows = []
    for q, vector in enumerate(query):
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)

            def project(x, kind, part=part):
                offset = kind * DIM
                return (weight[offset : offset + DIM] @ x + bias[offset : offset + DIM])[part]

            scores = {
                k: math.exp((project(vector, 0) @ project(key[k], 1)).item() / math.sqrt(size))
                for k in allowed[q]
            }
            total = sum(scores.values())
            heads.append(sum(s / total * project(value[k], 2) for k, s in scores.items()))
        rows.append(
            layer.out_proj.weight.double() @ torch.cat(heads) + layer.out_proj.bias.double()
        )
    return torch.stack(rows)


def naive_cross_layer(layer, x, embed, key, value, logits):
    """Masked cross-attention, its residual and its norm, for one image."""
    allowed = []
    for row in torch.sigmoid(logits).flatten(1):
        on = [k for k, p in enumerate(row.tolist()) if p >= 0.5]
        allowed.append(on or list(range(len(row))))
    norm = nn.LayerNorm(DIM, dtype=torch.float64)
    norm.load_state_dict(layer.norm.state_dict())
    if layer.pre_norm:
        return x + naive_attention(layer.multihead_attn, norm(x) + embed, key, value, allowed)
    return norm(x + naive_attention(layer.multihead_attn, x + embed, key, value, allowed))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_masked_cross_attention_equals_the_naive_layer(pre_norm):
    torch.manual_seed(0)
    layer = CrossAttentionLayer(DIM, HEADS, dropout=0.0, pre_norm=pre_norm)
    nn.init.normal_(layer.multihead_attn.in_proj_bias)
    nn.init.normal_(layer.norm.weight)
    x, embed = torch.randn(2, 4, DIM), torch.randn(1, 4, DIM)
    key, value, logits = torch.randn(2, 6, DIM), torch.randn(2, 6, DIM), torch.randn(2, 4, 2, 3)
    logits[0, 1] = -1.0  # a query whose mask is off everywhere
    found = layer(x, embed, key, value, attention_mask(logits))
    for i in range(2):
        arguments = [t.double() for t in (x[i], embed[0], key[i], value[i], logits[i])]
        expected = naive_cross_layer(layer, *arguments)
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_attention_mask_opens_a_row_that_is_blocked_everywhere():
    logits = torch.tensor([[[[-1.0, 2.0], [0.0, -3.0]], [[-1.0, -1.0], [-2.0, -0.5]]]])
    mask = attention_mask(logits.requires_grad_())
    assert mask.tolist() == [[[[False, True, True, False], [True, True, True, True]]]]
    assert mask.dtype == torch.bool and not mask.requires_grad


def test_the_mask_of_a_query_blocks_pixels_from_it_alone():
    torch.manual_seed(0)
    layer = CrossAttentionLayer(DIM, HEADS, dropout=0.0, pre_norm=False)
    x, embed, key, value = (torch.randn(1, n, DIM) for n in (2, 2, 5, 5))
    attend = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    attend[0, 0, 0, 3] = False
    before = layer(x, embed, key, value, attend)
    value[0, 3] += 10
    after = layer(x, embed, key, value, attend)
    torch.testing.assert_close(before[0, 0], after[0, 0])
    assert (before[0, 1] - after[0, 1]).abs().max() > 0.1


@pytest.mark.parametrize("same", [True, False])
def test_attention_equals_torchs_own_module(same):
    torch.manual_seed(0)
    ours, theirs = Attention(DIM, HEADS), nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, value = torch.randn(2, 4, DIM), torch.randn(2, 4, DIM)
    key = query if same else torch.randn(2, 4, DIM)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_self_attention_and_feed_forward_as_written_out(pre_norm):
    torch.manual_seed(0)
    attention = SelfAttentionLayer(DIM, HEADS, dropout=0.0, pre_norm=pre_norm)
    feed = FeedForwardLayer(DIM, 20, dropout=0.0, pre_norm=pre_norm)
    x, embed = torch.randn(1, 4, DIM), torch.randn(1, 4, DIM)
    everything = [list(range(4))] * 4

    def attend(inside):
        placed = (inside + embed)[0].double()
        values = inside[0].double()
        return naive_attention(attention.self_attn, placed, placed, values, everything).float()

    def forward(inside):
        return (
            torch.clamp(inside @ feed.linear1.weight.T + feed.linear1.bias, min=0)
            @ (feed.linear2.weight.T)
            + feed.linear2.bias
        )

    if pre_norm:
        expected = x + attend(attention.norm(x)), x + forward(feed.norm(x))
    else:
        expected = attention.norm(x + attend(x)), feed.norm(x + forward(x))
    torch.testing.assert_close(attention(x, embed), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(feed(x), expected[1], rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer = SelfAttentionLayer(DIM, HEADS, dropout=0.5, pre_norm=False)
    x, embed = torch.randn(1, 4, DIM), torch.randn(1, 4, DIM)
    assert not torch.equal(layer(x, embed), layer(x, embed))
    layer.eval()
    assert torch.equal(layer(x, embed), layer(x, embed))


def test_channels_that_the_heads_cannot_share_are_refused():
    with pytest.raises(ValueError, match="12 channels cannot be split into 5"):
        Attention(12, 5)


def test_mask_logits_are_dot_products():
    embed, features = torch.randn(2, 3, 5), torch.randn(2, 5, 4, 6)
    expected = torch.einsum("bqc,bchw->bqhw", embed, features)
    torch.testing.assert_close(mask_logits(embed, features), expected)
