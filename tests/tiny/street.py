"""A drawn street with two cars, and two models that learned this one picture in some seconds.

They stand in for published models where a tutorial is run: there is no network in the tests. A
model of one picture gives sensible results for it, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image, ImageDraw

from panoptic_ext.data import write_id_map
from tests import ROOT

WIDTH, HEIGHT = 320, 240  # pixels
CAR, ROAD, TREE, SKY = 3, 149, 184, 187  # dataset ids of COCO
CATEGORIES = [entry for entry in COCO_CATEGORIES if entry["id"] in (CAR, ROAD, TREE, SKY)]
SEGMENTS = {1: SKY, 2: TREE, 3: ROAD, 4: CAR, 5: CAR}
"""Segment id -> dataset id of its class."""


def draw_street() -> tuple[Image.Image, np.ndarray]:
    """The RGB picture, and the (H, W) int32 segment id of each pixel."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (135, 180, 235))
    ids = Image.new("L", (WIDTH, HEIGHT), 1)
    brush, labels = ImageDraw.Draw(picture), ImageDraw.Draw(ids)
    for x in range(-20, WIDTH, 38):
        top = 62 + x * 7 % 19
        for draw, value in ((brush, (40, 105 + x % 30, 55)), (labels, 2)):
            draw.ellipse((x, top, x + 62, 150), fill=value)
    for draw, value in ((brush, (98, 98, 104)), (labels, 3)):
        draw.rectangle((0, 122, WIDTH, HEIGHT), fill=value)
    for x in range(10, WIDTH, 64):
        brush.rectangle((x, 217, x + 34, 221), fill=(225, 225, 215))
    for number, (x, y, color) in enumerate([(18, 112, (190, 45, 40)), (186, 134, (45, 75, 190))]):
        _draw_car(brush, x, y, color, (25, 25, 28), (205, 225, 240))
        _draw_car(labels, x, y, *(4 + number,) * 3)
    return picture, np.asarray(ids).astype(np.int32)


def _draw_car(
    draw: ImageDraw.ImageDraw, x: int, y: int, body: Any, wheels: Any, windows: Any
) -> None:
    """A car of 116 x 72 pixels, its upper left corner at (x, y)."""
    for left in (x + 16, x + 78):
        draw.ellipse((left, y + 48, left + 24, y + 72), fill=wheels)
    draw.rounded_rectangle((x, y + 28, x + 116, y + 60), 12, fill=body)
    draw.polygon([(x + 20, y + 30), (x + 38, y), (x + 82, y), (x + 102, y + 30)], fill=body)
    for a, b, c, d in ((30, 42, 56, 56), (61, 61, 79, 91)):
        draw.polygon(
            [(x + a, y + 28), (x + b, y + 6), (x + c, y + 6), (x + d, y + 28)], fill=windows
        )


def write_street(folder: Path) -> Path:
    """Write the picture and its truth as a COCO panoptic data set; returns the picture's path."""
    picture, ids = draw_street()
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    path = folder / "images" / "street.png"
    picture.save(path)
    write_id_map(folder / "labels" / "street.png", ids)
    segments = [
        {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": 0}
        for i, c in SEGMENTS.items()
    ]
    image = {"id": 1, "file_name": "street.png", "height": HEIGHT, "width": WIDTH}
    annotation = {"image_id": 1, "file_name": "street.png", "segments_info": segments}
    content = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return path


PANOPTIC_FPN = """
_BASE_: {root}/configs/common/panoptic_fpn/Base-PanopticFPN-Small.yaml
MODEL:
  DEVICE: cpu
  RESNETS: {{DEPTH: 50, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4}}
  FPN: {{OUT_CHANNELS: 32}}
  SEM_SEG_HEAD: {{CONVS_DIM: 32}}
  ROI_BOX_HEAD: {{FC_DIM: 64}}
  ROI_MASK_HEAD: {{CONV_DIM: 32}}
DATASETS:
  TRAIN: [tutorial_street]
  TEST: []
  PANOPTIC:
    tutorial_street:
      JSON: {data}/panoptic.json
      IMAGE_ROOT: {data}/images
      PNG_ROOT: {data}/labels
INPUT: {{MIN_SIZE_TRAIN: [120], MIN_SIZE_TEST: 120, COLOR_AUG_SSD: False, RANDOM_FLIP: none}}
SOLVER: {{IMS_PER_BATCH: 1, WARMUP_ITERS: 10, BASE_LR: 0.002}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{EVAL_PERIOD: 0}}
SEED: 3
OUTPUT_DIR: {output}
"""


def write_panoptic_fpn_config(data: Path, output: Path) -> Path:
    """Write the config of a Panoptic FPN that learns the picture in `data`."""
    path = data / "panoptic_fpn.yaml"
    path.write_text(PANOPTIC_FPN.format(root=ROOT, data=data, output=output))
    return path


QUERIES = 12
LABELS = 250  # of DETR's class head: COCO's ids and those that COCO left out


def save_street_detr(folder: Path, *, side: int = 120, steps: int = 600, seed: int = 0) -> Path:
    """Train a small DETR on the picture; save it as `save_pretrained` does; returns `folder`.

    The order in which queries take segments is drawn before: this is quicker than matching.

    Args:
        folder: gets the files.
        side: height of the network's input, pixels; 3 / 4 of its width.
        steps: at most; the training ends when every segment is found.
        seed: of the weights and of that order.

    Raises:
        RuntimeError: a segment was not found.
    """
    from transformers import DetrImageProcessor

    torch.manual_seed(seed)
    network = _detr()
    size = {"shortest_edge": side, "longest_edge": side * WIDTH // HEIGHT}
    processor = DetrImageProcessor(size=size)
    picture, ids = draw_street()
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    masks = torch.from_numpy(np.stack([ids == i for i in SEGMENTS])).float()
    taken = torch.randperm(QUERIES)[: len(SEGMENTS)]
    labels = torch.full((QUERIES,), LABELS)
    labels[taken] = torch.tensor(list(SEGMENTS.values()))
    attention: list[torch.Tensor] = []  # (1, QUERIES, heads, h, w) of the last forward pass
    hook = network.bbox_attention.register_forward_hook(lambda *args: attention.append(args[-1]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    for step in range(steps):
        outputs = network(pixel_values=pixels)
        if step % 25 == 24 and _all_found(outputs, taken, labels, masks):
            hook.remove()
            network.save_pretrained(folder)
            processor.save_pretrained(folder)
            return folder
        optimizer.zero_grad()
        loss = _loss(outputs, taken, labels, masks)
        loss = loss + _loss_attention(attention.pop()[0, taken], masks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    raise RuntimeError(f"the small DETR has not learned its picture in {steps} steps")


def _detr() -> torch.nn.Module:
    from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

    names = dict.fromkeys(range(LABELS), "N/A")
    names.update({entry["id"]: entry["name"] for entry in COCO_CATEGORIES})
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=64, num_queries=QUERIES, dropout=0.0,
        encoder_layers=1, encoder_attention_heads=8, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=8, decoder_ffn_dim=64, id2label=names,
    )  # fmt: skip
    network = DetrForSegmentation(config)
    # Queries that begin nearly equal would take long to differ.
    torch.nn.init.normal_(network.detr.model.query_position_embeddings.weight)
    return network


def _loss(outputs: Any, taken: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor) -> Any:
    found = _masks(outputs, taken, masks)
    shares = found.sigmoid()
    dice = 1 - 2 * (shares * masks).sum((1, 2)) / (shares.sum((1, 2)) + masks.sum((1, 2)))
    boxes = torch.stack([_relative_box(mask) for mask in masks])
    distance = (outputs.pred_boxes[0, taken] - boxes).abs().sum(-1).mean()
    pixels = F.binary_cross_entropy_with_logits(found, masks)
    return F.cross_entropy(outputs.logits[0], labels) + 10 * pixels + 2 * dice.mean() + 5 * distance


def _loss_attention(attention: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Queries look at their own segment: without it both cars may share one mask for long."""
    shares = F.adaptive_avg_pool2d(masks, attention.shape[-2:])
    wanted = shares / shares.sum((1, 2), keepdim=True)
    found = attention.sum(1).clamp(min=1e-6)  # over heads and cells together attention sums to 1
    return -(wanted * found.log()).sum((1, 2)).mean()


@torch.no_grad()
def _all_found(
    outputs: Any, taken: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
) -> bool:
    scores = outputs.logits[0].softmax(-1).gather(1, labels[:, None])
    found = _masks(outputs, taken, masks) > 0
    truth = masks > 0
    iou = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    return bool(scores.min() > 0.95 and iou.min() > 0.8)


def _masks(outputs: Any, taken: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Logits of the queries that have a segment, at the size of its mask."""
    logits = outputs.pred_masks[:, taken]
    return F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)[0]


def _relative_box(mask: torch.Tensor) -> torch.Tensor:
    """Centre, width and height, as shares of the picture's width and height."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    x0, x1 = columns[0] / mask.shape[1], (columns[-1] + 1) / mask.shape[1]
    y0, y1 = rows[0] / mask.shape[0], (rows[-1] + 1) / mask.shape[0]
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


DETR = """
_BASE_: {root}/configs/coco/transformers/Base-TransformersPanoptic-coco.yaml
MODEL:
  DEVICE: cpu
  TRANSFORMERS:
    NAME_OR_PATH: {folder}
"""


def write_detr_config(folder: Path) -> Path:
    """Write the config that reads the DETR in `folder` as a model of COCO's classes."""
    path = folder / "detr.yaml"
    path.write_text(DETR.format(root=ROOT, folder=folder))
    return path


def stand_ins(folder: Path, *, iterations: int = 110) -> dict[str, dict[str, str]]:
    """Train both models; the values of the first cell of each tutorial, by the name of its page.

    Args:
        folder: gets the picture, the models and their configs.
        iterations: of the Panoptic FPN.
    """
    from tests.tiny.train_in_process import train

    picture = write_street(folder / "data")
    run, detr = folder / "run", save_street_detr(folder / "detr")
    config = write_panoptic_fpn_config(folder / "data", run)
    code = train(["--config-file", str(config), "SOLVER.MAX_ITER", str(iterations)])
    if code:
        raise RuntimeError(f"training the small Panoptic FPN ended with {code}")
    return {
        "segment_image": {"MODEL": str(run), "PICTURE": str(picture)},
        "detr_panoptic": {"MODEL": str(write_detr_config(detr)), "PICTURE": str(picture)},
    }
