"""PMT's decoder once more, slowly: one image, one head and one query at a time, no module of ours.

Written from the equations. Shapes: T tokens (Q queries, P prefix tokens, N patches), D channels.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def norm(x, state, name, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    deviation = (x - mean).pow(2).mean(-1, keepdim=True).add(eps).sqrt()
    return (x - mean) / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def lateral(feature, state, name, statistics=None):
    """(T, D) of one image -> (T, D). `statistics`: mean and variance of the batch, in training."""
    mean, variance = statistics or (
        state[f"{name}.norm.running_mean"],
        state[f"{name}.norm.running_var"],
    )
    x = (feature - mean) / (variance + 1e-5).sqrt()
    x = x * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]
    inner = gelu(linear(x, state, f"{name}.project.0"))
    return (x + linear(inner, state, f"{name}.project.2")) * state[f"{name}.scale"]


def rotated(x, grid):
    """(N, d) of one head: pairs of channels i, i + d/2 turn by angles of the patch's place."""
    out, half, quarter = x.clone(), x.shape[1] // 2, x.shape[1] // 4
    for patch in range(len(x)):
        row, column = divmod(patch, grid[1])
        place = [2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1]
        for i in range(half):
            angle = 2 * math.pi * place[i // quarter] / 100 ** ((i % quarter) / quarter)
            a, b = x[patch, i], x[patch, i + half]
            out[patch, i] = a * math.cos(angle) - b * math.sin(angle)
            out[patch, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(x, state, name, heads, grid, allowed):
    """(T, D) -> (T, D). `allowed`: (Q, N) bool or None."""
    num_patches = grid[0] * grid[1]
    rotates = slice(len(x) - num_patches, None)
    query, key, value = (x @ w.T for w in state[f"{name}.qkv.weight"].chunk(3))
    query, value = query + state[f"{name}.q_bias"], value + state[f"{name}.v_bias"]
    results, width = [], x.shape[1] // heads
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        q, k, v = query[:, columns].clone(), key[:, columns].clone(), value[:, columns]
        q[rotates], k[rotates] = rotated(q[rotates], grid), rotated(k[rotates], grid)
        scores = q @ k.T / math.sqrt(width)
        if allowed is not None:
            part = scores[: len(allowed), -num_patches:]
            scores[: len(allowed), -num_patches:] = part.masked_fill(~allowed, -math.inf)
        results.append(scores.softmax(-1) @ v)
    return linear(torch.cat(results, -1), state, f"{name}.proj")


def predictions(x, state, grid, num_queries):
    """(T, D) -> (Q, K + 1) and (Q, 4 h, 4 w)."""
    x = norm(x, state, "norm")
    queries = x[:num_queries]
    features = x[-grid[0] * grid[1] :].T.reshape(1, -1, *grid)
    for i in range(2):
        conv = f"upscale.{i}.conv1"
        features = F.conv_transpose2d(
            features, state[f"{conv}.weight"], state[f"{conv}.bias"], stride=2
        )
        weight = state[f"upscale.{i}.conv2.weight"]
        features = F.conv2d(gelu(features), weight, padding=1, groups=len(weight))
        features = norm(features.movedim(1, -1), state, f"upscale.{i}.norm", 1e-6).movedim(-1, 1)
    embed = gelu(linear(queries, state, "mask_head.0"))
    embed = linear(gelu(linear(embed, state, "mask_head.2")), state, "mask_head.4")
    masks = torch.stack([(features[0] * e[:, None, None]).sum(0) for e in embed])
    return linear(queries, state, "class_head"), masks


def decode(features, state, grid, heads, *, masked, statistics=None):
    """Features (T, D) of one image -> the predictions before each block and after the last."""
    num_queries = len(state["q.weight"])
    patches = sum(
        lateral(feature, state, f"lateral.{i}", statistics and statistics[i])
        for i, feature in enumerate(features)
    )
    x = torch.cat([state["q.weight"], patches])
    results, block = [], 0
    while f"blocks.{block}.gamma_1" in state:
        results.append(predictions(x, state, grid, num_queries))
        allowed = None
        if masked:
            masks = F.interpolate(results[-1][1][None], grid, mode="bilinear")[0]
            allowed = masks.flatten(1) > 0
        name = f"blocks.{block}"
        y = attention(norm(x, state, f"{name}.norm1"), state, f"{name}.attn", heads, grid, allowed)
        x = x + state[f"{name}.gamma_1"] * y
        y = gelu(linear(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
        x = x + state[f"{name}.gamma_2"] * linear(y, state, f"{name}.mlp.fc2")
        block += 1
    return [*results, predictions(x, state, grid, num_queries)]
