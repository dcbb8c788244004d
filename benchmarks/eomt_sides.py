"""The models of benchmarks/eomt.py: transformers' EoMT and ours with equal weights, Mask2Former.

They have 133 classes, 200 queries and random weights. The class head is biased so that about 30
queries of the first image are kept. Images are squares, as transformers' model wants them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from mask2former_sides import (
    CLASSES,
    OVERLAP,
    SEGMENTS,
    STUFF,
    THINGS,
    Clock,
    Stopwatch,
    bias_class_head,
    make_image,
    make_optimizer,
    make_truth,
)
from mask2former_sides import Ours as Mask2FormerSide
from mask2former_sides import make_ours as make_our_mask2former
from mask2former_sides import make_peer as make_mask2former_peer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.modeling.eomt.published_weights import from_published
from tests.modeling.meta_arch.eomt_peers import build_peer

__all__ = ["ENCODERS", "MODELS", "Ours", "Peer", "make_mask2former", "make_ours", "make_peer"]

NAME = "benchmark_eomt"
QUERIES = 200
# Width, blocks, heads, blocks with queries.
MODELS = {
    "tiny": (32, 4, 2, 2),  # no published one: for a run that only has to end
    "small": (384, 12, 6, 3),
    "base": (768, 12, 12, 3),
    "large": (1024, 24, 16, 4),
}
ENCODERS = {
    "dinov2": "vit_{}_patch14_reg4_dinov2",
    "dinov3": "vit_{}_patch16_dinov3_qkvb",
}


def points_of(model: str) -> int:
    """Points at which masks are compared."""
    return 64 if model == "tiny" else 12544


def make_peer(model: str, family: str, side: int) -> nn.Module:
    """Build transformers' model with random weights."""
    width, depth, heads, blocks = MODELS[model]
    peer = build_peer(
        family,
        attention="sdpa",
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_blocks=blocks,
        num_queries=QUERIES,
        num_labels=CLASSES,
        image_size=side,
        train_num_points=points_of(model),
    )
    peer.attn_mask_probs.zero_()
    bias_class_head(peer, (side, side))
    return peer


def make_ours(
    peer: nn.Module, model: str, family: str, side: int, *, compiled: bool = False
) -> nn.Module:
    """Build our model with the peer's weights."""
    MetadataCatalog.get(NAME).isthing = tuple(i < THINGS for i in range(CLASSES))
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticExtEoMT"
    cfg.MODEL.BACKBONE.NAME = "build_plain_vit_backbone"
    cfg.MODEL.DEVICE = "cpu"
    vit = cfg.MODEL.VIT
    published = "small" if model == "tiny" else model
    vit.NAME, vit.IMAGE_SIZE, vit.PATCH_SIZE = ENCODERS[family].format(published), side, 16
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS = MODELS[model][:3]
    vit.COMPILE = compiled
    cfg.MODEL.EOMT.NUM_QUERIES, cfg.MODEL.EOMT.NUM_BLOCKS = QUERIES, MODELS[model][3]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    keys = cfg.MODEL.MASK_FORMER
    keys.TRAIN_NUM_POINTS = points_of(model)
    keys.TEST.PANOPTIC_ON, keys.TEST.SEMANTIC_ON, keys.TEST.INSTANCE_ON = True, False, False
    keys.TEST.OBJECT_MASK_THRESHOLD, keys.TEST.OVERLAP_THRESHOLD = 0.8, OVERLAP
    cfg.DATASETS.TRAIN = (NAME,)
    ours = build_model(cfg).eval()
    weights = from_published(peer.state_dict())
    missing = ours.load_state_dict(weights, strict=False).missing_keys
    if [name for name in missing if not name.startswith("criterion.")]:
        raise RuntimeError(f"the peer's weights lack {missing}")
    return ours


def make_mask2former(side: int) -> nn.Module:
    """Build our Mask2Former R50 with random weights; about 30 of its 100 queries are kept."""
    return make_our_mask2former(make_mask2former_peer((side, side)), "panoptic")


class Peer:
    """Calls of transformers' model."""

    def __init__(
        self, model: nn.Module, reference: nn.Module, side: int, batch: int, device: str,
        clock: Clock, *, compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.sizes = model.to(device), [(side, side)] * batch
        self.call = torch.compile(self.model) if compiled else self.model
        self.images = torch.stack([make_image((side, side), i) for i in range(batch)]).to(device)
        self.mean = reference.pixel_mean.clone().to(device)
        self.std = reference.pixel_std.clone().to(device)
        self.processor = transformers.EomtImageProcessor(
            size={"shortest_edge": side, "longest_edge": side}
        )
        self.watch = Stopwatch(model, {"criterion": "criterion"}, clock)
        ids, classes = make_truth((side, side))
        masks = ids == torch.arange(1, SEGMENTS + 1)[:, None, None]
        self.truth = {
            "mask_labels": [masks.float().to(device)] * batch,
            "class_labels": [classes.to(device)] * batch,
        }
        self.optimizer = make_optimizer(model)

    def pixels(self) -> Tensor:
        return (self.images - self.mean) / self.std

    def outputs(self) -> tuple[Tensor, Tensor]:
        """(B, Q, K + 1) class and (B, Q, h, w) mask logits."""
        self.model.attn_mask_probs.zero_()
        outputs = self.call(pixel_values=self.pixels())
        return outputs.class_queries_logits, outputs.masks_queries_logits

    def infer(self) -> Any:
        self.model.attn_mask_probs.zero_()
        outputs = self.call(pixel_values=self.pixels())
        self.watch.start("post-processing")
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        result = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.8,
            overlap_mask_area_threshold=OVERLAP,
            stuff_classes=sorted(STUFF),
            target_sizes=self.sizes,
        )
        self.watch.stop("post-processing")
        return result

    def loss(self) -> Tensor:
        """With every attention mask on."""
        self.model.train()
        self.model.attn_mask_probs.fill_(1)
        return self.call(pixel_values=self.pixels(), **self.truth).loss


class Ours(Mask2FormerSide):
    """Calls of our model, or of our Mask2Former; only the criterion is timed by itself."""

    parts: ClassVar[dict[str, str]] = {"criterion": "criterion"}

    def loss(self) -> Tensor:
        """At iteration 0, before annealing begins: every attention mask is on."""
        with EventStorage(0):
            return super().loss()
