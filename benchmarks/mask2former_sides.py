"""The two models of benchmarks/mask2former.py: transformers' and ours, with equal weights.

They have 133 classes, 100 queries and random weights. The class head is biased so that about 30
queries of the first image are kept. Shapes: H x W is the image.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.model_zoo.transformers_weights import load_from_transformers
from tests.model_zoo.random_peer import randomise

__all__ = [
    "CLASSES",
    "OUR_PARTS",
    "OVERLAP",
    "SEGMENTS",
    "THINGS",
    "Clock",
    "Ours",
    "Peer",
    "Size",
    "Stopwatch",
    "clock_of",
    "make_image",
    "make_optimizer",
    "make_sides",
    "make_truth",
]

ROOT = Path(__file__).resolve().parents[1]
CLASSES, THINGS, KEPT, SEGMENTS = 133, 80, 30, 15
OVERLAP = 0.02  # overlap threshold: the smallest share of its mask that a segment may keep
NAME = "benchmark_mask2former"
STUFF = set(range(THINGS, CLASSES))
SMALL = {
    "encoder_layers": 1,
    "decoder_layers": 4,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "train_num_points": 64,
}
PEER_PARTS = {
    "backbone": "model.pixel_level_module.encoder",
    "pixel decoder": "model.pixel_level_module.decoder",
    "decoder": "model.transformer_module",
    "criterion": "criterion",
}
OUR_PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "decoder": "sem_seg_head.predictor",
    "criterion": "criterion",
}

Size = tuple[int, int]
Clock = Callable[[], float]


class Stopwatch:
    """Record the milliseconds of a call and of the modules that run in it."""

    def __init__(self, model: nn.Module, parts: dict[str, str], clock: Clock) -> None:
        self.now = clock
        self.times: dict[str, list[float]] = defaultdict(list)
        self._starts: dict[str, float] = {}
        for part, name in parts.items():
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, part=part: self.start(part))
            module.register_forward_hook(lambda *_, part=part: self.stop(part))

    def start(self, part: str) -> None:
        self._starts[part] = self.now()

    def stop(self, part: str) -> None:
        self.times[part].append(1000 * (self.now() - self._starts[part]))

    def medians(self) -> dict[str, float]:
        return {part: statistics.median(times) for part, times in self.times.items()}


def clock_of(device: str, cpu_time: bool) -> Clock:
    if device == "cuda":
        return lambda: torch.cuda.synchronize() or time.perf_counter()
    return time.process_time if cpu_time else time.perf_counter


def make_image(size: Size, number: int = 0) -> Tensor:
    """(3, H, W) uint8: smooth blobs with a little noise; each `number` gives another image."""
    generator = torch.Generator().manual_seed(1 + number)
    coarse = torch.rand(1, 3, size[0] // 32, size[1] // 32, generator=generator) * 255
    image = nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    return (image + 8 * torch.randn(3, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


def make_truth(size: Size) -> tuple[Tensor, Tensor]:
    """(H, W) int32 ids 1 to 15, one for each cell of a grid, and their classes."""
    rows = torch.arange(size[0]) * 3 // size[0]
    columns = torch.arange(size[1]) * (SEGMENTS // 3) // size[1]
    ids = rows[:, None] * (SEGMENTS // 3) + columns + 1
    classes = torch.randint(0, CLASSES, (SEGMENTS,), generator=torch.Generator().manual_seed(2))
    return ids.to(torch.int32), classes


def make_peer(size: Size, *, small: bool = False) -> nn.Module:
    """Build transformers' model with random weights, and with fixed batch norms like ours.

    Args:
        size: of the image by which the class head is biased.
        small: a quarter of ResNet-50's channels and few layers, for a run that only has to end.
    """
    torch.manual_seed(0)
    stages = [f"stage{i}" for i in range(1, 5)]
    channels = {"hidden_sizes": [64, 128, 256, 512], "embedding_size": 16} if small else {}
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(out_features=stages, **channels),
        num_labels=CLASSES,
        **(SMALL if small else {}),
    )
    peer = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    randomise(peer)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    bias_class_head(peer, size)
    return peer


@torch.no_grad()
def bias_class_head(peer: nn.Module, size: Size) -> None:
    """Make the class scores sharp, and bias "no object" so that it loses for KEPT queries."""
    peer.class_predictor.weight.normal_(0, 1)
    peer.class_predictor.bias.zero_()
    pixels = (make_image(size).float() - 110) / 57
    logits = peer(pixel_values=pixels[None]).class_queries_logits[0]
    objects, nothing = logits[:, :-1], logits[:, -1]
    sure = objects.softmax(-1).amax(-1) > 0.9
    margin = torch.where(sure, objects.amax(-1) - nothing, -torch.inf)
    peer.class_predictor.bias[-1] = margin.topk(KEPT + 1).values[-2:].mean() - 1.5


def make_ours(peer: nn.Module, outputs: str, *, small: bool = False) -> nn.Module:
    MetadataCatalog.get(NAME).isthing = tuple(i < THINGS for i in range(CLASSES))
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    if small:
        resnets, head, keys = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        resnets.WIDTH_PER_GROUP = resnets.STEM_OUT_CHANNELS = 16
        resnets.RES2_OUT_CHANNELS = 64
        head.TRANSFORMER_ENC_LAYERS, keys.DEC_LAYERS = SMALL["encoder_layers"], 4
        head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = SMALL["encoder_feedforward_dim"]
        keys.DIM_FEEDFORWARD, keys.TRAIN_NUM_POINTS = SMALL["dim_feedforward"], 64
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = outputs == "all"
    test.OVERLAP_THRESHOLD = OVERLAP
    cfg.DATASETS.TRAIN = (NAME,)
    ours = build_model(cfg).eval()
    load_from_transformers(ours, peer)
    return ours


class Peer:
    """Calls of transformers' model."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        size: Size,
        batch: int,
        device: str,
        clock: Clock,
    ) -> None:
        self.model, self.sizes = model.to(device), [size] * batch
        self.images = torch.stack([make_image(size, i) for i in range(batch)]).to(device)
        self.mean, self.std = reference.pixel_mean.to(device), reference.pixel_std.to(device)
        self.processor = transformers.Mask2FormerImageProcessor()
        self.watch = Stopwatch(model, PEER_PARTS, clock)
        ids, classes = make_truth(size)
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
        outputs = self.model(pixel_values=self.pixels())
        return outputs.class_queries_logits, outputs.masks_queries_logits

    def infer(self) -> Any:
        outputs = self.model(pixel_values=self.pixels())
        self.watch.start("post-processing")
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        result = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.8,
            overlap_mask_area_threshold=OVERLAP,
            label_ids_to_fuse=STUFF,
            target_sizes=self.sizes,
        )
        self.watch.stop("post-processing")
        return result

    def loss(self) -> Tensor:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self.model(pixel_values=self.pixels(), **self.truth).loss


class Ours:
    """Calls of our model; `parts` are the modules that are timed, and their names in the tables."""

    parts: ClassVar[dict[str, str]] = OUR_PARTS

    def __init__(self, model: nn.Module, size: Size, batch: int, device: str, clock: Clock) -> None:
        self.model = model.to(device)
        self.watch = Stopwatch(model, self.parts, clock)
        ids, classes = make_truth(size)
        segments = Instances(size)
        segments.gt_classes, segments.gt_isthing = classes, classes < THINGS
        segments.gt_iscrowd = torch.zeros(SEGMENTS, dtype=torch.bool)
        self.inputs = [
            {"image": make_image(size, i).to(device), "panoptic_ids": ids, "segments": segments}
            for i in range(batch)
        ]
        self.optimizer = make_optimizer(model)
        postprocess = model.postprocess

        def timed(*args: Any) -> Any:
            self.watch.start("post-processing")
            result = postprocess(*args)
            self.watch.stop("post-processing")
            return result

        model.postprocess = timed

    def infer(self) -> Any:
        return self.model(self.inputs)

    def loss(self) -> Tensor:
        self.model.train()
        return torch.stack(list(self.model(self.inputs).values())).sum()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-6, foreach=True)


def make_sides(
    size: Size,
    batch: int,
    device: str,
    clock: Clock,
    *,
    published: Path | None = None,
    outputs: str = "panoptic",
) -> tuple[Any, Ours]:
    """The peer (transformers' model, or that of the `published` checkout) and ours."""
    peer = make_peer(size)
    ours = make_ours(peer, outputs)
    if published is not None:
        from mask2former_published import Published

        side = Published(published, ours, size, batch, device, clock, outputs)
        return side, Ours(ours, size, batch, device, clock)
    return Peer(peer, ours, size, batch, device, clock), Ours(ours, size, batch, device, clock)
