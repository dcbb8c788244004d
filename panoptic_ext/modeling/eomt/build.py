"""Build the parts of EoMT from a config."""

from __future__ import annotations

import logging
from typing import Any

from panoptic_ext.errors import ConfigError, quoted, unknown
from panoptic_ext.modeling.eomt.annealing import Annealing, annealing_pairs
from panoptic_ext.modeling.eomt.head import EoMTHead

__all__ = ["build_annealing", "build_eomt_head"]

logger = logging.getLogger(__name__)


def build_eomt_head(cfg: Any, *, embed_dim: int, patch_size: int) -> EoMTHead:
    """Build the queries and the prediction head.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        embed_dim: channels of the encoder's tokens.
        patch_size: side of a patch, pixels.

    Raises:
        ConfigError: there is no query.
    """
    keys = cfg.MODEL.EOMT
    if keys.NUM_QUERIES < 1:
        raise ConfigError(
            f"MODEL.EOMT.NUM_QUERIES is {keys.NUM_QUERIES}, expected 1 or more (published: 200)"
        )
    return EoMTHead(
        embed_dim=embed_dim,
        num_queries=keys.NUM_QUERIES,
        num_blocks=keys.NUM_BLOCKS,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        patch_size=patch_size,
    )


def build_annealing(cfg: Any) -> Annealing | None:
    """Build the annealing that MODEL.EOMT.ANNEALING chooses; None for "off".

    A warning says that a training ends before its masks have vanished, because evaluation then has
    none to which the model was used.

    Raises:
        ConfigError: the key is neither a known word nor a list with a pair for each block.
    """
    keys, max_iter = cfg.MODEL.EOMT, cfg.SOLVER.MAX_ITER
    if not keys.ANNEALING_POWER > 0:
        raise ConfigError(
            f"MODEL.EOMT.ANNEALING_POWER is {keys.ANNEALING_POWER}, expected more than 0 "
            "(published: 0.9)"
        )
    if keys.ANNEALING == "off":
        return None
    if keys.ANNEALING == "auto":
        first = list(keys.ANNEALING_FIRST)
        if first:
            _check_pair("MODEL.EOMT.ANNEALING_FIRST", first)
        pairs = annealing_pairs(max_iter, keys.NUM_BLOCKS, first)
    else:
        pairs = _given_pairs(keys.ANNEALING, keys.NUM_BLOCKS)
    # The rule has windows of a sixth of the training.
    is_too_short = max_iter < 6 and keys.ANNEALING == "auto"
    if keys.MASKED_ATTENTION and (is_too_short or max(end for _, end in pairs) > max_iter):
        _warn_of_masks_that_stay(pairs, max_iter)
    return Annealing(pairs, keys.ANNEALING_POWER)


def _given_pairs(value: Any, num_blocks: int) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, (list, tuple)):
        mend = "or a list of [start, end] iterations for each block"
        raise ConfigError(unknown("MODEL.EOMT.ANNEALING", value, ("auto", "off"), mend=mend))
    if len(value) != num_blocks:
        raise ConfigError(
            f"MODEL.EOMT.ANNEALING has {len(value)} pairs, but MODEL.EOMT.NUM_BLOCKS is "
            f"{num_blocks}; give [start, end] for each block"
        )
    for pair in value:
        _check_pair("MODEL.EOMT.ANNEALING", pair)
    return tuple((pair[0], pair[1]) for pair in value)


def _check_pair(key: str, pair: Any) -> None:
    is_pair = isinstance(pair, (list, tuple)) and [type(at) for at in pair] == [int, int]
    if not (is_pair and 0 <= pair[0] <= pair[1]):
        raise ConfigError(
            f"{key} holds {quoted(pair)}, expected [start, end], iterations with 0 <= start <= end"
        )


def _warn_of_masks_that_stay(pairs: tuple[tuple[int, int], ...], max_iter: int) -> None:
    logger.warning(
        "SOLVER.MAX_ITER %d leaves no room for MODEL.EOMT.ANNEALING, whose blocks have start, end "
        "%s: attention would have masks until the end or never, and evaluation has none. Train "
        "longer, give other pairs, or set MODEL.EOMT.ANNEALING off, so that evaluation masks, too",
        max_iter,
        [list(pair) for pair in pairs],
    )
