"""A zoo of tiny EoMT models with random weights, one in each of the four published forms."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from tests.tiny import eomt_published as tiny
from tests.tiny.eomt import DINOV2, DINOV3

CLASSES = [
    {"name": "disc", "isthing": True},
    {"name": "grass", "isthing": False},
    {"name": "sky", "isthing": False},
]


def config_text(data_set: str, *, dinov3: bool, base: str = "") -> str:
    """A YAML file of the models of `tests.tiny.eomt_published`."""
    model = {
        "DEVICE": "cpu",
        "META_ARCHITECTURE": "PanopticExtEoMT",
        "BACKBONE": {"NAME": "build_plain_vit_backbone"},
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "VIT": {
            "NAME": DINOV3 if dinov3 else DINOV2,
            "PATCH_SIZE": 16,
            "IMAGE_SIZE": tiny.IMAGE_SIZE,
            "EMBED_DIM": tiny.WIDTH,
            "DEPTH": tiny.DEPTH,
            "NUM_HEADS": tiny.HEADS,
        },
        "EOMT": {
            "NUM_QUERIES": tiny.QUERIES,
            "NUM_BLOCKS": tiny.BLOCKS,
            **({"ENCODER_WEIGHTS": base} if base else {}),
        },
        "MASK_FORMER": {
            "TEST": {
                "PANOPTIC_ON": True,
                "OBJECT_MASK_THRESHOLD": 0.0,
                "OVERLAP_THRESHOLD": 0.0,
            }
        },
    }
    images = {
        "FORMAT": "RGB",
        "MIN_SIZE_TEST": 64,
        "MAX_SIZE_TEST": 96,
        "IMAGE_SIZE": tiny.IMAGE_SIZE,
    }
    data = {"TRAIN": [data_set], "TEST": [data_set]}
    return yaml.safe_dump({"MODEL": model, "INPUT": images, "DATASETS": data, "VERSION": 2})


def write_zoo(folder: Path) -> dict[str, Path]:
    """Write weights, configs and entries `tiny_<form>`; the file of weights of each form.

    The forms are those that this version of transformers has models of.
    """
    import safetensors.torch

    base = tiny.encoder_of_dinov3().state_dict()
    safetensors.torch.save_file(base, folder / "base.safetensors")
    files = {
        "transformers_v2": folder / "v2.safetensors",
        "transformers_v3": folder / "v3_pytorch_model.bin",
        "bin_v2": folder / "v2.bin",
        "bin_v3": folder / "v3_difference.bin",
    }
    files = {form: files[form] for form in tiny.available_forms()}
    theirs = tiny.Lazy(lambda version: tiny.transformers_model(version == "v3").state_dict())
    for form, path in files.items():
        weights = tiny.weights_of(form, theirs[form[-2:]], base)
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(weights, path)
        else:
            torch.save(weights, path)
        encoder = str(folder / "base.safetensors") if form == "bin_v3" else ""
        text = config_text(f"tiny_{form}_val", dinov3=form.endswith("v3"), base=encoder)
        (folder / f"config_{form}.yaml").write_text(text)
        entry = {
            "name": f"tiny_{form}",
            "task": "panoptic",
            "data_set": f"tiny_{form}_val",
            "classes": CLASSES,
            "config": f"config_{form}.yaml",
            "weights": {"file": path.name},
            "licence": "MIT",
            "commercial_use": True,
            "source": "tests",
        }
        (folder / f"{form}.yaml").write_text(yaml.safe_dump(entry))
    return files
