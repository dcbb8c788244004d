"""A tiny Mask2Former and images for it."""

from __future__ import annotations

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances

from panoptic_ext import add_panoptic_ext_config
from tests import ROOT
from tests.tiny.model_inputs import IS_THING, NARROW_RESNET

NAME = "fake_mask_former"
THINGS = [i for i, thing in enumerate(IS_THING) if thing]
TINY = {
    "MODEL.DEVICE": "cpu",
    **NARROW_RESNET,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(IS_THING),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 0.0,
    "MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": 0.0,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.1,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "DATASETS.TRAIN": (NAME,),
}


def tiny_cfg(base="Base-Mask2Former-Small", **changes):
    """The config of the tiny model with other values, by their full keys."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former-Small.yaml"))
    if base != "Base-Mask2Former-Small":
        cfg.merge_from_file(str(ROOT / f"configs/common/mask2former/{base}.yaml"))
    for key, value in {**TINY, **changes}.items():
        cfg.merge_from_list([key, value])
    return cfg


def build(base="Base-Mask2Former-Small", **changes):
    torch.manual_seed(0)
    return build_model(tiny_cfg(base, **changes))


def mapped(size=(64, 96), num=3, seed=0):
    """A mapped training image with `num` segments of random classes in columns, void at the end."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    columns = torch.arange(width) * (num + 1) // width + 1
    ids = torch.where(columns <= num, columns, 0).to(torch.int32).expand(height, width).clone()
    rows = Instances(size)
    rows.gt_classes = torch.randint(0, len(IS_THING), (num,), generator=generator)
    rows.gt_isthing = torch.tensor([IS_THING[c] for c in rows.gt_classes], dtype=torch.bool)
    rows.gt_iscrowd = torch.zeros(num, dtype=torch.bool)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "panoptic_ids": ids,
        "segments": rows,
        "height": height,
        "width": width,
        "file_name": f"{seed}.png",
    }


def train(model, inputs):
    """Losses of one forward and backward pass, by name; no optimizer step."""
    model.train()
    model.zero_grad()
    losses = model(inputs)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


def predict(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(inputs)
