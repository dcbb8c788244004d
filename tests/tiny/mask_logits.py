"""Class logits and mask logits of random queries, and the sizes that mask inference asks for."""

from __future__ import annotations

import torch

THINGS = {0, 1, 2}


def make_case(queries, classes, size, seed, scale=4.0):
    """Class logits and smooth random mask logits."""
    generator = torch.Generator().manual_seed(seed)
    mask_cls = torch.randn(queries, classes + 1, generator=generator) * 2
    return mask_cls, torch.randn(queries, *size, generator=generator) * scale


def sizes_of(size, stride=4, pad=(0, 0), output=None):
    """Keywords of mask inference for logits of `size`: padded by `pad`, and resized to `output`."""
    padded = (size[0] * stride, size[1] * stride)
    image = (padded[0] - pad[0], padded[1] - pad[1])
    return {"image_size": image, "padded_size": padded, "output_size": output or image}


def box_of(mask):
    """x0, y0, x1, y1 around a mask, the ends exclusive; zeros for an empty one."""
    rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows else [0, 0, 0, 0]


def blobs(queries, size, seed=0):
    """A compact object for each query, as in trained models: each query covers few tiles."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centre = torch.rand(queries, 2, 1, 1, generator=generator) * torch.tensor(size)[:, None, None]
    radius = torch.rand(queries, 1, 1, generator=generator) * min(size) / 3 + 1
    return radius - ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
