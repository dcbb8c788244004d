"""Build the losses of Mask2Former from a config."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from panoptic_ext.config.mask_former import mask_former_task
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.placed_criterion import PlacedCriterion
from panoptic_ext.modeling.transformer_decoder import transformer_decoder_class

__all__ = ["build_criterion", "build_semantic_classifier"]

# Key of MODEL.MASK_FORMER -> least value, greatest value, and what the error says is expected.
_LOSS_KEYS = {
    "CLASS_WEIGHT": (0, math.inf, "a weight of 0 or more"),
    "MASK_WEIGHT": (0, math.inf, "a weight of 0 or more"),
    "DICE_WEIGHT": (0, math.inf, "a weight of 0 or more"),
    "NO_OBJECT_WEIGHT": (0, math.inf, "a weight of 0 or more (published: 0.1)"),
    "SEMANTIC_LOSS_WEIGHT": (0, math.inf, "0 (no such loss) or more"),
    "CENTRE_LOSS_WEIGHT": (0, math.inf, "a weight of 0 or more"),
    "CLASS_BALANCE": (0, 1, "0 (all pixels and queries count the same) to 1 (all classes do)"),
    "TRAIN_NUM_POINTS": (1, math.inf, "1 point a mask or more (published: 12544)"),
    "OVERSAMPLE_RATIO": (1, math.inf, "1 candidate for each point or more (published: 3)"),
    "IMPORTANCE_SAMPLE_RATIO": (0, 1, "a share of the points from 0 to 1 (published: 0.75)"),
    "BOX_SAMPLE_RATIO": (0, 1, "a share of the points from 0 (the published sampling) to 1"),
}


def _check_loss_keys(keys: Any) -> None:
    for key, (least, most, expected) in _LOSS_KEYS.items():
        value = keys[key]
        if not (math.isfinite(value) and least <= value <= most):
            raise ConfigError(f"MODEL.MASK_FORMER.{key} is {value}, expected {expected}")


def build_semantic_classifier(
    cfg: Any, *, has_stuff: bool, channels: int | None = None
) -> nn.Module | None:
    """Build the 1x1 convolution mask_features -> class logits of the auxiliary semantic loss.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        has_stuff: whether some class of the data set is stuff.
        channels: of the mask_features of a model without a transformer decoder; None: MASK_DIM.

    Returns:
        None where the loss has no weight, or where the decoder computes such logits itself.

    Raises:
        ConfigError: the loss has no weight, although the decoder reads stuff from these logits.
    """
    weight = cfg.MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT
    if channels is None and transformer_decoder_class(cfg).places_queries:
        # Without the loss the decoder's semantic logits would stay random, and with them all stuff.
        if has_stuff and mask_former_task(cfg) != "instance" and not weight:
            raise ConfigError(
                "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT is 0, but "
                f"{cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME} finds stuff in the classes of "
                "the pixels, which this loss teaches; set it above 0 (the small configs have 5.0)"
            )
        return None
    if not weight:
        return None
    keys = cfg.MODEL.SEM_SEG_HEAD
    return nn.Conv2d(channels or keys.MASK_DIM, keys.NUM_CLASSES, kernel_size=1)


def _loss_weights(keys: Any, num_auxiliary: int, places_queries: bool) -> dict[str, float]:
    """Weight of each loss by its name; `keys` are those of MODEL.MASK_FORMER."""
    final_weights = {
        "loss_ce": keys.CLASS_WEIGHT,
        "loss_mask": keys.MASK_WEIGHT,
        "loss_dice": keys.DICE_WEIGHT,
    }
    weights = dict(final_weights)
    if keys.DEEP_SUPERVISION:
        for i in range(num_auxiliary):
            weights.update({f"{name}_{i}": weight for name, weight in final_weights.items()})
    if places_queries or keys.SEMANTIC_LOSS_WEIGHT:
        weights["loss_sem_seg"] = keys.SEMANTIC_LOSS_WEIGHT
    if places_queries:
        weights["loss_centre"] = weights["loss_box"] = keys.CENTRE_LOSS_WEIGHT
    return weights


def build_criterion(
    cfg: Any,
    *,
    num_auxiliary: int | None = None,
    queries_key: str = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
) -> SetCriterion:
    """Build the criterion of a model, with the weight of each of its losses.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        num_auxiliary: number of the auxiliary outputs of a model without a transformer decoder;
            None: as the config's decoder, which also chooses the criterion.
        queries_key: the key of the number of queries, for a warning.

    Raises:
        ConfigError: a key of the loss is out of its range.
    """
    keys = cfg.MODEL.MASK_FORMER
    _check_loss_keys(keys)
    places_queries = num_auxiliary is None and transformer_decoder_class(cfg).places_queries
    if num_auxiliary is None:
        # DEC_LAYERS counts all predictions. One of them is the final one, the others are auxiliary.
        num_auxiliary = keys.DEC_LAYERS - 1
    matcher = HungarianMatcher(
        class_weight=keys.CLASS_WEIGHT,
        mask_weight=keys.MASK_WEIGHT,
        dice_weight=keys.DICE_WEIGHT,
        num_points=keys.TRAIN_NUM_POINTS,
        box_sample_ratio=keys.BOX_SAMPLE_RATIO,
        shared_points=keys.SHARED_MATCHING_POINTS,
        queries_key=queries_key,
    )
    arguments = {
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "matcher": matcher,
        "weight_dict": _loss_weights(keys, num_auxiliary, places_queries),
        "no_object_weight": keys.NO_OBJECT_WEIGHT,
        "num_points": keys.TRAIN_NUM_POINTS,
        "oversample_ratio": keys.OVERSAMPLE_RATIO,
        "importance_sample_ratio": keys.IMPORTANCE_SAMPLE_RATIO,
        "box_sample_ratio": keys.BOX_SAMPLE_RATIO,
        "class_balance": keys.CLASS_BALANCE,
    }
    if places_queries:
        return PlacedCriterion(stuff_in_map=mask_former_task(cfg) == "panoptic", **arguments)
    return SetCriterion(**arguments)
