"""Functions of same_results.py that each make the record of one item.

They use only interfaces that do not change: configs, the names imported below from panoptic_ext and
from Detectron2, tools/evaluate_panoptic.py, and COCO panoptic JSON and PNG.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from PIL import Image
from same_results_items import COMMON, MAPS, NUM_IMAGES, TRAINING, WEIGHTS, Item
from same_results_records import CFG, Record, digest, flat, load, nested
from torch import nn

import panoptic_ext
from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.engine import Checkpointer, Trainer, build_test_loader, load_cfg

TREE = Path(panoptic_ext.__file__).resolve().parents[1]
SUBSET = "same_results_val"  # the data set of the images that are predicted
_FREE_SECTIONS = ("DATASETS.PANOPTIC.",)  # any key is valid in them
_PATHS = ("evaluation.json",)  # files of an evaluation that repeat the config


class Places(NamedTuple):
    """The folders of a job.

    Attributes:
        recorded: weights and predictions of `record`.
        scratch: temporary files of this item only.
        data: the data sets.
        left_out: list to which keys are added that this version of the code does not have.
    """

    recorded: Path
    scratch: Path
    data: Path
    left_out: list[str]


def make_weights(name: str, places: Places) -> Record:
    """Train a model for a short time, on the images that it will predict, and save its weights."""
    blocks = subset_of(WEIGHTS[name], places)
    cfg = read_config(WEIGHTS[name], places, {**blocks, **TRAINING, "DATASETS.TRAIN": [SUBSET]})
    trainer, record = train(cfg)
    path = weights_file(name, places)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": trainer.model.state_dict()}, path)
    return record


def weights_file(name: str, places: Places) -> Path:
    return places.recorded / "weights" / f"{name}.pth"


def record_losses(item: Item, places: Places) -> Record:
    """The losses of each iteration, and a checksum of each tensor of the model after the last."""
    trainer, record = train(read_config(item, places, TRAINING))
    for key, value in trainer.model.state_dict().items():
        record[f"weights/{key}"] = digest(value)
    return record


def record_maps(item: Item, places: Places) -> Record:
    """All outputs of a model on each image."""
    cfg = read_config(item, places, subset_of(item, places))
    seed_all_rng(cfg.SEED)
    model = build_model(cfg)
    Checkpointer(model).load(str(weights_file(item.weights, places)), checkpointables=[])
    model.eval()
    record: Record = {}
    with torch.no_grad():
        for inputs in build_test_loader(cfg, SUBSET):
            for given, output in zip(inputs, model(inputs), strict=True):
                record.update(record_of_output(output, str(given["image_id"])))
    return record


def record_pq(name: str, places: Places) -> Record:
    """Results of the evaluators within a run and of the file evaluator, on recorded predictions."""
    predictions = nested(load(places.recorded / "maps" / f"{name}.npz"))
    item = MAPS[name]
    changes = subset_of(item, places)
    changes["TEST.EVALUATORS"] = ["panoptic", "semantic", "instance"]
    changes["TEST.WRITE_PREDICTIONS"] = True
    changes["TEST.CONTACT_SHEET"] = 2
    cfg = read_config(item, places, changes)
    seed_all_rng(cfg.SEED)
    record = flat(Trainer.test(cfg, Replay(predictions)), "live")
    folder = Path(cfg.OUTPUT_DIR) / "inference" / SUBSET
    record.update(record_of_files(folder, "live files", places))
    blocks = changes[f"DATASETS.PANOPTIC.{SUBSET}"]
    truth = Path(blocks["JSON"])
    result = evaluate_files(predictions, truth, blocks["PNG_ROOT"], places)
    return {**record, **flat(result, "from files")}


def record_configs(data: str, places: Places) -> Record:
    """Every config of a data set."""
    folder = TREE / "configs" / data
    record: Record = {}
    for path in sorted(folder.rglob("*.yaml")):
        if path.name.startswith("Base-"):
            continue
        name = path.relative_to(folder).as_posix()
        cfg = read_config(Item(f"{data}/{name}", {}), places, {}, output=False)
        record[f"file {name}"] = True
        record.update(flat_config(cfg, f"{CFG}{name}/"))
    return record


def record_state(config: str, places: Places) -> Record:
    """The config, and name, shape, dtype and initial values of each tensor of the model."""
    cfg = read_config(Item(config, {}), places, {}, output=False)
    record = flat_config(cfg)
    seed_all_rng(cfg.SEED)
    for name, value in build_model(cfg).state_dict().items():
        record[f"tensor/{name}"] = f"{value.dtype} {list(value.shape)} {digest(value)}"
    return record


def read_config(item: Item, places: Places, more: dict[str, Any], output: bool = True) -> CfgNode:
    """The config of an item; keys that this version does not have are left out."""
    changes = {**COMMON, **item.changes, **more}
    if output:
        changes["OUTPUT_DIR"] = str(places.scratch / "output")
    known = get_cfg()
    add_panoptic_ext_config(known)
    content: dict[str, Any] = {"_BASE_": str(TREE / "configs" / item.config)}
    for key, value in changes.items():
        if not is_known(known, key):
            places.left_out.append(key)
            continue
        node = content
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    path = places.scratch / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_cfg(str(path))


def is_known(cfg: CfgNode, key: str) -> bool:
    """Whether a version has a key."""
    if key.startswith(_FREE_SECTIONS):
        return True
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return False
        node = node[name]
    return True


def flat_config(cfg: CfgNode, prefix: str = CFG) -> Record:
    """Each key of a config with its value as text; lists and tuples are the same."""

    def text(value: Any) -> str:
        items = isinstance(value, (list, tuple))
        return f"[{', '.join(map(text, value))}]" if items else repr(value)

    def walk(node: CfgNode, prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in node.items():
            if isinstance(value, CfgNode):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", text(value).replace(str(TREE), "<tree>")

    return dict(walk(cfg, prefix))


class LossHook(HookBase):
    """Keeps every loss, and the learning rate, of each iteration."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def after_step(self) -> None:
        for name, (value, _) in self.trainer.storage.latest().items():
            if "loss" in name or name == "lr":
                self.values[name].append(value)


def train(cfg: CfgNode) -> tuple[Trainer, Record]:
    """Train; the trainer and the record of the losses."""
    seed_all_rng(cfg.SEED)
    trainer, hook = Trainer(cfg), LossHook()
    trainer.register_hooks([hook])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer, {name: np.array(values) for name, values in hook.values.items()}


def subset_of(item: Item, places: Places) -> dict[str, Any]:
    """Keys that make some validation images of the item's data set the test set."""
    name = item.config.split("/")[0]
    source = places.data / name
    content = json.loads((source / "panoptic_val.json").read_text())
    images = content["images"][:: len(content["images"]) // NUM_IMAGES][:NUM_IMAGES]
    ids = {image["id"] for image in images}
    content["images"] = images
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    path = places.scratch / "truth.json"
    path.write_text(json.dumps(content))
    folders = {"IMAGE_ROOT": str(source / "images"), "PNG_ROOT": str(source / "panoptic")}
    return {
        "DATASETS.TEST": [SUBSET],
        f"DATASETS.PANOPTIC.{SUBSET}": {"JSON": str(path), **folders},
    }


def record_of_output(output: dict[str, Any], image_id: str) -> Record:
    """All outputs of a model for one image.

    "sem_seg" is recorded as the best classes, a checksum of the scores, and some of the scores,
    which show the size of a difference.
    """
    result: dict[str, Any] = {}
    if output.get("panoptic_seg") is not None:
        result["panoptic_seg"], result["segments_info"] = output["panoptic_seg"]
    if output.get("sem_seg") is not None:
        scores = output["sem_seg"]
        result["sem_seg"] = {
            "classes": scores.argmax(0).to(torch.uint8),
            "checksum": f"{scores.dtype} {list(scores.shape)} {digest(scores)}",
            "some scores": scores[:, ::16, ::16].contiguous(),
        }
    if output.get("instances") is not None:
        fields = output["instances"].get_fields()
        result["instances"] = {name: of_field(value) for name, value in fields.items()}
    others = {name: "there" for name in output if name not in (*result, "panoptic_seg")}
    return flat({**result, **others}, image_id)


def of_field(value: Any) -> Any:
    """Boxes as their tensor, masks as packed bits."""
    if isinstance(value, Boxes):
        return value.tensor
    if value.ndim == 3:
        bits = value.cpu().numpy()
        packed = {"bits": np.packbits(bits != 0, axis=-1), "shape": str(bits.shape)}
        return {**packed, "checksum": f"{bits.dtype} {digest(bits)}"}
    return value


class Replay(nn.Module):
    """A model that returns recorded predictions."""

    def __init__(self, predictions: dict[str, Any]) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._output(self.predictions[str(x["image_id"])]) for x in batched_inputs]

    def _output(self, prediction: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = {}
        if "panoptic_seg" in prediction:
            ids = torch.from_numpy(prediction["panoptic_seg"])
            output["panoptic_seg"] = ids, segments_of(prediction)
        if "sem_seg" in prediction:
            classes = torch.from_numpy(prediction["sem_seg"]["classes"]).long()
            number = prediction["sem_seg"]["some scores"].shape[0]
            output["sem_seg"] = nn.functional.one_hot(classes, number).permute(2, 0, 1).float()
        if "instances" in prediction:
            output["instances"] = instances_of(prediction)
        return output


def segments_of(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments_info of a recorded prediction."""
    segments = []
    for entry in prediction.get("segments_info", {}).values():
        listed = {key: value for key, value in entry.items() if not isinstance(value, dict)}
        listed.update({k: list(v.values()) for k, v in entry.items() if isinstance(v, dict)})
        segments.append(listed)
    return segments


def instances_of(prediction: dict[str, Any]) -> Instances:
    """The instances of a recorded prediction."""
    fields = prediction["instances"]
    height, width = prediction["panoptic_seg"].shape
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.from_numpy(fields["pred_boxes"]))
    instances.scores = torch.from_numpy(fields["scores"])
    instances.pred_classes = torch.from_numpy(fields["pred_classes"])
    masks = np.unpackbits(fields["pred_masks"]["bits"], axis=-1, count=width).astype(bool)
    instances.pred_masks = torch.from_numpy(masks)
    return instances


def record_of_files(folder: Path, prefix: str, places: Places) -> Record:
    """Files of an evaluation: results by value, predictions and pictures by checksum."""
    record: Record = {}
    for path in sorted(folder.rglob("*")):
        name = f"{prefix}/{path.relative_to(folder).as_posix().replace('/', ':')}"
        if path.suffix == ".png":
            with Image.open(path) as image:
                record[name] = f"{image.mode} {image.size} {digest(np.asarray(image))}"
        if path.suffix != ".json" or path.name in _PATHS:
            continue
        text = path.read_text().replace(str(places.data), "<data>")
        content = json.loads(text.replace(str(places.scratch), "<scratch>"))
        if isinstance(content, dict):
            content.pop("info", None)  # times of files
        if isinstance(content, dict) and "annotations" not in content:
            record.update(flat(content, name))
        else:
            record[name] = digest(json.dumps(content, sort_keys=True).encode())
    return record


def evaluate_files(
    predictions: dict[str, Any], truth: Path, png_root: str, places: Places
) -> dict[str, Any]:
    """Write the predictions as files; the result of tools/evaluate_panoptic.py on them."""
    categories = {c["name"]: c["id"] for c in json.loads(truth.read_text())["categories"]}
    names = MetadataCatalog.get(SUBSET).stuff_classes
    folder = places.scratch / "predictions"
    folder.mkdir()
    annotations = []
    for image in json.loads(truth.read_text())["images"]:
        prediction = predictions[str(image["id"])]
        file_name = f"{image['id']}.png"
        ids = prediction["panoptic_seg"].astype(np.int64)
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / file_name)
        segments = [
            {"id": s["id"], "category_id": categories[names[s["category_id"]]]}
            for s in segments_of(prediction)
        ]
        entry = {"image_id": image["id"], "file_name": file_name, "segments_info": segments}
        annotations.append(entry)
    result, given = places.scratch / "result.json", places.scratch / "predictions.json"
    given.write_text(json.dumps({"annotations": annotations}))
    options = ["--gt", str(truth), "--gt-root", png_root, "--pred", str(given), "--threads", "1"]
    options += ["--pred-root", str(folder), "--output", str(result)]
    tool = str(TREE / "tools" / "evaluate_panoptic.py")
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    command = [sys.executable, tool, *options]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return json.loads(result.read_text())


def write_stub_data_sets(root: Path) -> None:
    """Write JSONs without images, for configs of data sets that are not on this machine."""
    for template, splits, classes, things in (
        ("ADEChallengeData2016/ade20k_panoptic_{}.json", ("train", "val"), 150, 100),
        ("ADEChallengeData2016/ade20k_instance_{}.json", ("train", "val"), 100, 100),
        ("mapillary_vistas/{}/panoptic/panoptic_2018.json", ("training", "validation"), 65, 37),
    ):
        categories = [
            {"id": i + 1, "name": f"class{i}", "isthing": int(i < things)} for i in range(classes)
        ]
        content = {"categories": categories, "images": [], "annotations": []}
        for split in splits:
            path = root / template.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    for split in ("training", "validation"):
        (root / "ADEChallengeData2016/images" / split).mkdir(parents=True, exist_ok=True)
        (root / "mapillary_vistas" / split / "images").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (root / "ADEChallengeData2016" / f"ade20k_panoptic_{split}").mkdir(exist_ok=True)


def record_file(part: str, name: str, folder: Path) -> Path:
    return folder / part / f"{name.removesuffix('.yaml').replace('/', '-')}.npz"
