"""Layer norm over channels against its definition."""

import torch

from panoptic_ext.modeling.layers.layer_norm import LayerNorm2d


def test_every_pixel_is_normalised_over_its_channels():
    torch.manual_seed(0)
    norm = LayerNorm2d(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (variance + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_layout_and_an_empty_batch():
    norm = LayerNorm2d(4)
    assert norm(torch.zeros(0, 4, 2, 2)).shape == (0, 4, 2, 2)
    assert norm(torch.randn(2, 4, 3, 3)).is_contiguous(memory_format=torch.channels_last)
