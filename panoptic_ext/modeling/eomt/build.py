"""Build the parts of EoMT from a config."""

from __future__ import annotations

import logging
from typing import Any

from panoptic_ext.errors import ConfigError, quoted, unknown
from panoptic_ext.modeling.eomt.annealing import Annealing, annealing_pairs

__all__ = ["build_annealing", "head_arguments"]

logger = logging.getLogger(__name__)


def head_arguments(cfg: Any, *, embed_dim: int, patch_size: int, num_blocks: int) -> dict[str, Any]:
    """The arguments of `EoMTHead`.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        embed_dim: channels of the encoder's tokens.
        patch_size: side of a patch, pixels.
        num_blocks: blocks that the queries pass.

    Raises:
        ConfigError: there is no query.
    """
    num_queries = cfg.MODEL.EOMT.NUM_QUERIES
    if num_queries < 1:
        raise ConfigError(
            f"MODEL.EOMT.NUM_QUERIES is {num_queries}, expected 1 or more (published: 200)"
        )
    return {
        "embed_dim": embed_dim,
        "num_queries": num_queries,
        "num_blocks": num_blocks,
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "patch_size": patch_size,
    }


def build_annealing(
    cfg: Any, num_blocks: int, *, blocks_key: str = "MODEL.EOMT.NUM_BLOCKS"
) -> Annealing | None:
    """Build the annealing that MODEL.EOMT.ANNEALING chooses; None for "off".

    A warning says that a training ends before its masks have vanished, because evaluation then has
    none to which the model was used.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        num_blocks: blocks that the queries pass.
        blocks_key: the key of their number, for errors.

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
        pairs = annealing_pairs(max_iter, num_blocks, first)
    else:
        pairs = _given_pairs(keys.ANNEALING, num_blocks, blocks_key)
    # The rule has windows of a sixth of the training.
    is_too_short = max_iter < 6 and keys.ANNEALING == "auto"
    if keys.MASKED_ATTENTION and (is_too_short or max(end for _, end in pairs) > max_iter):
        _warn_of_masks_that_stay(pairs, max_iter)
    return Annealing(pairs, keys.ANNEALING_POWER)


def _given_pairs(value: Any, num_blocks: int, blocks_key: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, (list, tuple)):
        mend = "or a list of [start, end] iterations for each block"
        raise ConfigError(unknown("MODEL.EOMT.ANNEALING", value, ("auto", "off"), mend=mend))
    if len(value) != num_blocks:
        raise ConfigError(
            f"MODEL.EOMT.ANNEALING has {len(value)} pairs, but {blocks_key} is {num_blocks}; give "
            "[start, end] for each block"
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
