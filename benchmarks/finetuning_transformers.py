"""transformers' Mask2FormerForUniversalSegmentation as a peer of benchmarks/finetuning.py.

A plain loop with AdamW: the image processor makes the targets, torchvision's transforms augment,
the model computes its own loss, and post_process_panoptic_segmentation makes the maps. The backbone
is transformers' TimmBackbone with the packaged EfficientNet-Lite0. The evaluator alone is ours.
transformers' EoMT has the same loss, line for line, but needs a ViT, of which there are no
pretrained weights in a package; it is not trained here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from detectron2.data import MetadataCatalog
from detectron2.engine.hooks import EvalHook, LRScheduler, PeriodicWriter
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import JSONWriter
from detectron2.utils.file_io import PathManager
from finetuning_detectron2 import BACKBONE, SHEET_ROWS, WEIGHTS, SheetEvaluator
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from panoptic_ext.data import get_records, read_id_map
from panoptic_ext.data.image_files import read_image

__all__ = ["SETTINGS", "Setting", "make_model", "train"]

MEAN, STD = [127.0 / 255] * 3, [128.0 / 255] * 3
CHECKPOINT, CHECKPOINT_PERIOD = "checkpoint.pth", 50
STRIDE = 32  # images are padded to a multiple of it


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        batch: images per step.
        rate: learning rate; that of the backbone is `backbone_rate` times it.
        clip: largest norm of the gradient.
        warmup: iterations.
        augmentation: "sizes" (short edges drawn as in our configs) or "jitter" (large scale jitter,
            as published); then crops.
        freeze_norms: batch norms of a pretrained backbone keep their statistics.
        threshold: of `post_process_panoptic_segmentation`.
        model: of Mask2FormerConfig.
    """

    batch: int = 4
    rate: float = 1e-4
    backbone_rate: float = 0.1
    clip: float = 0.01
    warmup: int = 20
    augmentation: str = "sizes"
    freeze_norms: bool = True
    threshold: float = 0.5
    overlap: float = 0.8
    model: dict[str, Any] = field(default_factory=dict)


NARROW = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 256,
    "dim_feedforward": 256,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "train_num_points": 2048,
}
SETTINGS = {
    # The paper's model, learning rate, clipping and augmentation; 1e-4 was for 16 images.
    "published": Setting(batch=2, augmentation="jitter"),
    "published-fast": Setting(batch=2, rate=3e-4, clip=1.0),
    "narrow": Setting(batch=2, rate=1e-3, backbone_rate=0.2, clip=1.0, model=NARROW),
    "narrow-slow": Setting(batch=2, rate=3e-4, model=NARROW),
}
# Smallest and largest short edge, largest long edge, crop, and short edge of a test image.
SIZES = {"facade": (448, 704, 1024, 320, 512), "nuclei": (384, 640, 1024, 256, 512)}
QUERIES = {"facade": 100, "nuclei": 200}


def make_model(
    setting: Setting, classes: int, *, queries: int = 100, pretrained: bool = True
) -> transformers.Mask2FormerForUniversalSegmentation:
    """The model with random heads; a pretrained backbone has the packaged weights."""
    backbone = transformers.TimmBackboneConfig(backbone=BACKBONE, out_indices=[1, 2, 3, 4])
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=classes, num_queries=queries, **setting.model
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    if pretrained:
        encoder = model.model.pixel_level_module.encoder
        file = torch.load(PathManager.get_local_path(WEIGHTS), weights_only=True)
        lacking = encoder._backbone.load_state_dict(file["model"], strict=False).missing_keys
        if lacking:
            raise RuntimeError(f"{WEIGHTS} lacks {lacking}")
        if setting.freeze_norms:
            encoder.freeze_batch_norm_2d()
    return model


class Batches:
    """Augmented batches without end, as the processor makes them."""

    def __init__(self, setting: Setting, name: str, data: str, seed: int | Sequence[int]) -> None:
        self._records, self._batch = get_records(name), setting.batch
        self._random = np.random.default_rng(seed)
        least, most, longest, crop, short = SIZES[data]
        if setting.augmentation == "jitter":
            resize: Any = v2.ScaleJitter((short, short), (0.5, 2.0), antialias=True)
        else:
            shorts = list(range(least, most + 1, 32))
            resize = v2.RandomShortestSize(shorts, max_size=longest, antialias=True)
        crop_or_pad = v2.RandomCrop((crop, crop), pad_if_needed=True, fill=_fill())
        color = v2.ColorJitter(0.125, 0.5, 0.5, 0.05)
        self._augment = v2.Compose([resize, crop_or_pad, v2.RandomHorizontalFlip(), color])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            order = self._random.permutation(len(self._records))
            for start in range(0, len(order) - self._batch + 1, self._batch):
                chosen = order[start : start + self._batch]
                yield self._make([self._sample(self._records[i]) for i in chosen])

    def _sample(self, record: dict[str, Any]) -> tuple[Tensor, Tensor, dict[int, int]]:
        rgb = read_image(record["file_name"], "RGB")
        ids = read_id_map(record["pan_seg_file_name"])
        numbers, classes = np.zeros(ids.shape, np.int32), {}
        for number, segment in enumerate(record["segments_info"], 1):
            if not segment.get("iscrowd", 0):
                numbers[ids == segment["id"]] = number
                classes[number] = segment["category_id"]
        image = tv_tensors.Image(torch.from_numpy(rgb.copy()).permute(2, 0, 1))
        image, mask = self._augment(image, tv_tensors.Mask(torch.from_numpy(numbers)[None]))
        return image, mask[0], classes

    def _make(self, samples: list[tuple[Tensor, Tensor, dict[int, int]]]) -> dict[str, Any]:
        images, maps, classes = zip(*samples, strict=True)
        processor = make_processor(images)
        return processor(
            images=list(images),
            segmentation_maps=list(maps),
            instance_id_to_semantic_id=list(classes),
            return_tensors="pt",
        )


def _fill() -> dict[Any, int]:
    """Of cropped images that are too small: grey, and void."""
    return {tv_tensors.Image: 127, tv_tensors.Mask: 0}


def make_processor(images: Sequence[Tensor]) -> transformers.Mask2FormerImageProcessor:
    """It pads these images to a common size, does not resize, and leaves out void, id 0."""
    height, width = (
        -(-max(image.shape[axis] for image in images) // STRIDE) * STRIDE for axis in (1, 2)
    )
    return transformers.Mask2FormerImageProcessor(
        do_resize=False,
        ignore_index=0,
        image_mean=MEAN,
        image_std=STD,
        pad_size={"height": height, "width": width},
    )


def evaluate(
    model: nn.Module, setting: Setting, name: str, folder: Path, data: str
) -> dict[str, Any]:
    """Panoptic quality of the maps that the processor makes of the model's outputs."""
    evaluator = SheetEvaluator(name, str(folder), keep_predictions=SHEET_ROWS)
    isthing = MetadataCatalog.get(name).isthing
    stuff = {i for i, thing in enumerate(isthing) if not thing}
    _, _, longest, _, short = SIZES[data]
    resize = v2.Resize(short, max_size=max(longest, 1024))
    model.eval()
    for record in get_records(name):
        rgb = read_image(record["file_name"], "RGB")
        image = resize(torch.from_numpy(rgb.copy()).permute(2, 0, 1))
        processor = make_processor([image])
        inputs = processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        # The post-processing stretches the whole of the padded image over the result: cut it off.
        masks = outputs.masks_queries_logits
        height, width = (round(n * s / p) for n, s, p in zip(
            image.shape[1:], masks.shape[2:], inputs["pixel_values"].shape[2:], strict=True
        ))  # fmt: skip
        outputs.masks_queries_logits = masks[:, :, :height, :width]
        found = processor.post_process_panoptic_segmentation(
            outputs,
            threshold=setting.threshold,
            overlap_mask_area_threshold=setting.overlap,
            label_ids_to_fuse=stuff,
            target_sizes=[rgb.shape[:2]],
        )[0]
        evaluator.process([record], [{"panoptic_seg": _as_panoptic_seg(found, isthing)}])
    model.train()
    return evaluator.evaluate()


def _as_panoptic_seg(found: dict[str, Any], isthing: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """What transformers gives, with void 0; several entries may be of one fused segment."""
    ids = found["segmentation"].to(torch.int32).clamp_min(0)
    present, segments = set(ids.unique().tolist()), {}
    for segment in found["segments_info"]:
        if segment["id"] in present:
            label = segment["label_id"]
            segments[segment["id"]] = {
                "id": segment["id"],
                "category_id": label,
                "isthing": bool(isthing[label]),
            }
    return ids, list(segments.values())


class Loop(TrainerBase):
    """A plain training loop; Detectron2's hooks evaluate and write metrics.json."""

    batches: Iterator[dict[str, Any]]

    def __init__(self, model: nn.Module, setting: Setting, iterations: int, folder: Path) -> None:
        super().__init__()
        self.model, self.setting, self.folder = model.train(), setting, folder
        self.optimizer = make_optimizer(model, setting)
        warmup = min(setting.warmup, iterations // 10)
        self.schedule = transformers.get_cosine_schedule_with_warmup(
            self.optimizer, warmup, iterations
        )
        self.max_iter = iterations

    def run_step(self) -> None:
        loss = self.model(**next(self.batches)).loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.clip)
        self.optimizer.step()
        self.storage.put_scalar("total_loss", loss.item())

    def after_step(self) -> None:
        super().after_step()
        if (self.iter + 1) % CHECKPOINT_PERIOD == 0:
            self.save()

    def save(self) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "iteration": self.iter + 1,
        }
        part = self.folder / f"{CHECKPOINT}.part"
        torch.save(content, part)
        part.replace(self.folder / CHECKPOINT)

    def resume(self) -> int:
        """Load the checkpoint, if there is one; return the next iteration."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return 0
        content = torch.load(path)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        return content["iteration"]


def make_optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    """AdamW as published: no decay of norms and embeddings, a slower backbone."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    plain = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
    for name, module in model.named_modules():
        rate = setting.rate * (setting.backbone_rate if ".encoder._backbone" in name else 1)
        decay = 0.0 if isinstance(module, plain) else 0.05
        for parameter in module.parameters(recurse=False):
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    )


def train(
    setting: Setting,
    names: tuple[str, str],
    folder: Path,
    iterations: int,
    *,
    data: str = "facade",
    pretrained: bool = True,
    seed: int = 1,
    on_step: Callable[[], None] | None = None,
) -> None:
    """As `finetuning_detectron2.train`."""
    from finetuning_detectron2 import StepHook

    folder.mkdir(parents=True, exist_ok=True)
    seed_all_rng(seed)
    classes = len(MetadataCatalog.get(names[0]).isthing)
    model = make_model(setting, classes, queries=QUERIES[data], pretrained=pretrained)
    loop = Loop(model, setting, iterations, folder)
    start = loop.resume()
    loop.batches = iter(Batches(setting, names[0], data, [seed, start]))
    loop.register_hooks(
        [
            LRScheduler(loop.optimizer, loop.schedule),
            EvalHook(
                max(1, -(-iterations // 4)),
                lambda: evaluate(model, setting, names[1], folder, data),
            ),
            PeriodicWriter([JSONWriter(str(folder / "metrics.json"))]),
            StepHook(on_step) if on_step else None,
        ]
    )
    loop.train(start, iterations)
    torch.save(model.state_dict(), folder / "model_final.pth")
