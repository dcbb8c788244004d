"""DecoderOutputs: masks that are computed later, and what a decoder may return in its place."""

from __future__ import annotations

import pytest
import torch

from panoptic_ext.modeling.transformer_decoder import DecoderOutputs, Predictions, QueryMasks

LOGITS, MASKS = torch.zeros(1, 3, 5), torch.zeros(1, 3, 4, 4)
PUBLISHED = {"pred_logits": LOGITS, "pred_masks": MASKS}


def test_the_final_predictions_come_first():
    layer = Predictions(LOGITS + 1, MASKS)
    outputs = DecoderOutputs(LOGITS, MASKS, (layer,))
    assert outputs.predictions == (outputs, layer)
    assert outputs.semantic_logits is None and outputs.places is None


def test_outputs_stay_as_they_are():
    outputs = DecoderOutputs(LOGITS, MASKS)
    assert DecoderOutputs.of(outputs) is outputs
    with pytest.raises(AttributeError):
        outputs.pred_masks = MASKS


@pytest.mark.parametrize("layers", [None, 0, 2])
def test_a_dict_of_the_published_code_is_converted(layers):
    given = (
        dict(PUBLISHED) if layers is None else {**PUBLISHED, "aux_outputs": [PUBLISHED] * layers}
    )
    outputs = DecoderOutputs.of(given)
    assert outputs.pred_logits is LOGITS and outputs.pred_masks is MASKS
    assert [type(layer) for layer in outputs.aux_outputs] == [Predictions] * (layers or 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"pred_logits": LOGITS}, r"\['pred_logits'\]"),
        ({**PUBLISHED, "places": LOGITS}, "'places'"),
        ({**PUBLISHED, "aux_outputs": [{"pred_masks": MASKS}]}, "'aux_outputs'"),
        ((LOGITS, MASKS), "tuple"),
    ],
)
def test_anything_else_is_refused_with_what_is_expected(given, named):
    with pytest.raises(TypeError, match=rf"returned .*{named}.*expected DecoderOutputs, or a dict"):
        DecoderOutputs.of(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_masks_have_the_dtype_of_the_embeddings_whatever_autocast_says(dtype):
    embed, features = torch.randn(2, 3, 6).to(dtype), torch.randn(2, 6, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        masks = DecoderOutputs(LOGITS, QueryMasks(embed, features)).dense_masks()
    assert masks.dtype == dtype
    expected = torch.einsum("bqd,bdhw->bqhw", embed.float(), features)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(masks.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("queries", [[2, 0], [1], []])
def test_some_masks_of_an_image_are_those_of_all(queries):
    masks = QueryMasks(torch.randn(2, 3, 6), torch.randn(2, 6, 5, 4))
    rows = torch.tensor(queries, dtype=torch.int64)
    torch.testing.assert_close(masks.rows(1, rows), masks.dense()[1, rows])
