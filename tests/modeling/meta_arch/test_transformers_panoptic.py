"""TransformersPanoptic: training, class heads, configs of runs, and its errors."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file

from panoptic_ext.engine.optimizer import param_groups
from panoptic_ext.engine.run_config import load_cfg, without_pretrained
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.modeling.meta_arch.transformers_panoptic import TransformersPanoptic
from panoptic_ext.modeling.transformers_models.families import FAMILIES
from tests.tiny.finished_run import picture
from tests.tiny.mask_former import mapped
from tests.tiny.model_inputs import IS_THING
from tests.tiny.transformers_models import save_tiny
from tests.tiny.transformers_predictor import (
    AVAILABLE,
    CLASSES,
    EACH_FAMILY,
    LOW,
    opts,
    skip_absent,
    tiny_predictor,
    transformers,
)

NAME = "fake_transformers"
# Six classes of which the networks have labels for three.
NAMES = ["sky", "person", "disc", "wall", "car", "Grass-merged"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder of a tiny model."""
    root = tmp_path_factory.mktemp("networks")
    return {f: save_tiny(f, root / f, CLASSES, things=[2]) for f in AVAILABLE}


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get(NAME).set(thing_classes=NAMES, stuff_classes=NAMES, isthing=IS_THING)
    yield
    MetadataCatalog.pop(NAME)


def config(folder, **changes):
    keys = opts(str(folder), **{"DATASETS__TRAIN": f"['{NAME}']", **changes})
    return load_cfg("", keys, use_data=False)


def model_of(folder, **changes):
    torch.manual_seed(0)
    return build_model(config(folder, **changes))


def batch():
    return [mapped((64, 96), 3, 0), mapped((70, 64), 2, 1)]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_losses_sum_up_to_transformers_own(folders, family):
    model = model_of(folders[family]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    raw = {}
    model.network.register_forward_hook(lambda *call: raw.update(loss=call[-1].loss))
    losses = model(batch())
    assert sum(losses.values()).item() == pytest.approx(raw["loss"].item(), rel=1e-5)
    assert all(name.startswith("loss_") and loss.requires_grad for name, loss in losses.items())
    assert len(losses) >= (3 if family == "maskformer" else 8)
    sum(losses.values()).backward()
    head = [p for n, p in model.named_parameters() if f"{model.family.class_head}." in n]
    assert len(head) == 2 and all(p.grad.abs().sum() > 0 for p in head)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_an_image_without_segments_has_a_class_loss_alone(folders, family):
    losses = model_of(folders[family]).train()([mapped((64, 64), 0, 3)])
    sum(losses.values()).backward()
    found = {name for name, loss in losses.items() if loss.item() > 0}
    assert found and all("ce" in n or "cross_entropy" in n for n in found)


@pytest.mark.parametrize("family", skip_absent("detr", "eomt", "mask2former"))
def test_one_batch_is_learned(folders, family):
    model = model_of(folders[family]).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    values = []
    for _ in range(35 if family == "detr" else 12):
        loss = sum(model(batch()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-3:]) < 0.8 * values[0]


def test_a_new_head_takes_over_the_weights_of_equal_names(folders, caplog):
    caplog.set_level(logging.INFO)
    model = model_of(folders["mask2former"])
    kind = transformers.Mask2FormerForUniversalSegmentation
    old = kind.from_pretrained(folders["mask2former"]).class_predictor.weight
    new = model.network.class_predictor.weight
    assert new.shape[0] == len(NAMES) + 1 and model.network.config.id2label[5] == "Grass-merged"
    for row, label in ((0, "sky"), (2, "disc"), (5, "grass")):
        assert torch.equal(new[row], old[CLASSES.index(label)])
    assert torch.equal(new[-1], old[-1])  # no object
    assert "3 of the 6 classes" in caplog.text and "'person', 'wall', 'car'" in caplog.text
    with pytest.raises(ConfigError, match=r"new and was never trained .*'person'"):
        model.eval()(batch())
    model.load_state_dict(model.state_dict())
    assert len(model.eval()(batch())) == 2


def test_labels_that_are_kept_are_mapped_to_the_data_sets_classes(folders):
    model = model_of(folders["mask2former"], MODEL__TRANSFORMERS__CLASS_HEAD="keep", **LOW).eval()
    plain = tiny_predictor(folders["mask2former"], **LOW).model
    image = {"image": mapped()["image"], "height": 64, "width": 96}
    with torch.no_grad():
        found, labels = model([image])[0], plain([image])[0]
    classes = {NAMES.index(n): CLASSES.index(m) for n, m in
               (("sky", "sky"), ("disc", "disc"), ("Grass-merged", "grass"))}  # fmt: skip
    for segment in found["panoptic_seg"][1]:
        assert segment["category_id"] in classes
        assert segment["isthing"] == IS_THING[segment["category_id"]]
    for k, scores in enumerate(found["sem_seg"]):
        if k in classes:
            torch.testing.assert_close(scores, labels["sem_seg"][classes[k]])
        else:
            assert not scores.any()
    assert set(found["instances"].pred_classes.tolist()) <= {2}
    with pytest.raises(ConfigError, match=r"has no label for some classes"):
        model.train()(batch())


def test_a_model_of_other_classes_is_refused_if_they_are_to_be_kept(folders):
    MetadataCatalog.pop(NAME)
    names = ["a", "b", "c", "d", "e", "f"]
    MetadataCatalog.get(NAME).set(thing_classes=names, stuff_classes=names, isthing=IS_THING)
    with pytest.raises(ConfigError, match=r"no class of data set 'fake_transformers' .*'a', 'b'"):
        model_of(folders["detr"], MODEL__TRANSFORMERS__CLASS_HEAD="keep")


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_runs_config_and_checkpoint_are_enough(folders, family, tmp_path):
    cfg = config(folders[family])
    model = build_model(cfg)
    model.untrained = ""
    saved = TransformersPanoptic.config_of_run(cfg)
    assert TransformersPanoptic.config_of_run(saved) is saved
    path = tmp_path / "config.yaml"
    path.write_text(saved.dump().replace(folders[family], "/gone"))
    again = load_cfg(str(path), use_data=False)
    copy = build_model(without_pretrained(again))
    copy.load_state_dict(model.state_dict(), strict=True)
    image = {"image": mapped()["image"], "height": 30, "width": 40}
    with torch.no_grad():
        one, other = (m.eval()([image])[0] for m in (model, copy))
    assert torch.equal(one["sem_seg"], other["sem_seg"])
    with pytest.raises(ConfigError, match=r"NAME_OR_PATH '/gone' is no folder.*the run's folder"):
        build_model(again)


@pytest.mark.parametrize("family", skip_absent("detr", "mask2former", "eomt", "oneformer"))
def test_the_saved_model_is_transformers_own(folders, family, tmp_path):
    model = model_of(folders[family])
    model.save_pretrained(str(tmp_path))
    network = type(model.network).from_pretrained(tmp_path)
    assert network.config.id2label == dict(enumerate(NAMES))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name]), name
    again = tiny_predictor(str(tmp_path))
    assert again.metadata.thing_classes == NAMES and again.weights == ""


def test_half_precision_finds_the_same_classes(folders):
    changes = {"TEST__AMP_DTYPE": "bfloat16", **LOW}
    image = np.asarray(picture(3, 64, 64))
    for family in AVAILABLE:
        half = tiny_predictor(folders[family], **changes)(image)
        full = tiny_predictor(folders[family], **LOW)(image)
        same = half["sem_seg"].argmax(0) == full["sem_seg"].argmax(0)
        assert half["sem_seg"].dtype == torch.float32 and same.float().mean() > 0.7, family


def test_classes_and_kinds_without_a_data_set(folders, tmp_path):
    by_processor = tiny_predictor(folders["oneformer"]).metadata
    assert by_processor.isthing == (False, False, True, False, False)
    keys = {"MODEL__TRANSFORMERS__STUFF_CLASSES": "['road']"}
    assert tiny_predictor(folders["detr"], **keys).metadata.isthing == (True,) * 4 + (False,)
    with pytest.raises(
        ConfigError, match=r"unknown name in MODEL.TRANSFORMERS.STUFF_CLASSES 'roa'"
    ):
        tiny_predictor(folders["detr"], MODEL__TRANSFORMERS__STUFF_CLASSES="['roa']")
    names = ["N/A", "person", "bicycle", "tree-merged", "LABEL_4", "sky-other-merged"]
    coco = tiny_predictor(save_tiny("detr", tmp_path / "coco", names)).metadata
    assert coco.thing_classes == [names[i] for i in (1, 2, 3, 5)]
    assert coco.isthing == (True, True, False, False)
    assert coco.stuff_dataset_id_to_contiguous_id == {3: 2, 5: 3}


def test_images_are_resized_to_the_key(folders):
    sizes = []
    for size in ("[]", "[32, 64]"):
        model = tiny_predictor(folders["detr"], MODEL__TRANSFORMERS__SIZE=size).model
        model.network.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(kwargs["pixel_values"].shape[-2:]),
            with_kwargs=True,
        )
        model([{"image": torch.zeros(3, 50, 100), "height": 50, "width": 100}])
    assert sizes == [(64, 128), (32, 64)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TASK": "all"}, "unknown MODEL.TRANSFORMERS.TASK 'all'"),
        ({"CLASS_HEAD": "old"}, "unknown MODEL.TRANSFORMERS.CLASS_HEAD 'old'"),
        ({"POST_PROCESSING": "own"}, "unknown MODEL.TRANSFORMERS.POST_PROCESSING 'own'"),
        ({"SIZE": "[640]"}, r"MODEL.TRANSFORMERS.SIZE is \[640\], expected \[shorter, longer\]"),
        ({"THRESHOLD": 2.0}, "MODEL.TRANSFORMERS.THRESHOLD is 2.0, expected 0 to 1"),
        ({"POST_PROCESSING": "published", "MASK_THRESHOLD": 0.3}, "MASK_THRESHOLD is 0.3"),
        ({"NAME_OR_PATH": "''"}, "NAME_OR_PATH is empty"),
        ({"NAME_OR_PATH": "/no/such/folder"}, "'/no/such/folder' is no folder"),
        ({"ARCHITECTURE": "{}", "PRETRAINED": False}, "ARCHITECTURE cannot be used .KeyError"),
    ],
)
def test_bad_keys_are_refused(folders, changes, message):
    changes = {f"MODEL__TRANSFORMERS__{key}": value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        model_of(folders["detr"], **changes)


def test_folders_that_cannot_be_read(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"its config.json cannot be read"):
        model_of(tmp_path)
    content = json.loads(Path(folders["detr"], "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"its preprocessor_config.json cannot be read"):
        model_of(tmp_path)
    transformers.DetrImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"its weights cannot be read"):
        model_of(tmp_path)
    # A detection model: the same config, without the mask head.
    network = transformers.DetrForSegmentation.from_pretrained(folders["detr"])
    network.detr.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lack \d+ of the network's tensors"):
        model_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"unknown kind of panoptic model in .*'bert'"):
        model_of(tmp_path)


def test_a_family_that_this_transformers_lacks_is_named(folders, monkeypatch, tmp_path):
    newer = replace(FAMILIES["eomt"], network="NewerForUniversalSegmentation")
    monkeypatch.setitem(FAMILIES, "newer", newer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "newer"}))
    version = transformers.__version__
    said = rf"family newer, which transformers {version} lacks; it has detr, .*mask2former"
    with pytest.raises(ConfigError, match=said):
        model_of(tmp_path)
    content = {"processor": {"image_processor_type": "DetrImageProcessor"}}
    content["config"] = {"model_type": "newer", "id2label": {"0": "a"}}
    text = json.dumps(content)
    with pytest.raises(ConfigError, match=said):
        model_of("", MODEL__TRANSFORMERS__ARCHITECTURE=text, MODEL__TRANSFORMERS__PRETRAINED=False)


def test_a_swin_without_its_unused_norm_is_read(folders, tmp_path):
    """Published networks lack it; transformers 5 has it nevertheless, and ignores what it gives."""
    shutil.copytree(folders["oneformer"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    kept = {n: t for n, t in tensors.items() if not re.search(r"encoder\.(swin\.)?layernorm\.", n)}
    assert (len(kept) == len(tensors)) == transformers.__version__.startswith("4.")
    save_file(kept, file, metadata={"format": "pt"})
    image = np.asarray(picture(3, 64, 64))
    found, expected = (tiny_predictor(str(f))(image) for f in (tmp_path, folders["oneformer"]))
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], atol=1e-5, rtol=1e-5)
    del kept[next(name for name in kept if name.endswith("class_embed.bias"))]
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 1 of the .*, e.g. .*class_embed.bias"):
        model_of(tmp_path)


def test_a_name_on_the_hub_without_a_network(folders, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"'nobody/none': .*its config.json cannot be read.*HF_HOME"
    ):
        model_of("nobody/none")


def test_without_a_network_the_hub_is_not_asked(monkeypatch):
    def unknown_host(*args):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("time.sleep", None)  # huggingface_hub waits between its requests
    with pytest.raises(ConfigError, match=r"huggingface\.co cannot be found \(Name or service"):
        model_of("nobody/none")


def test_a_missing_package_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'panoptic_ext\[hf\]'"):
        model_of(folders["detr"])


@pytest.mark.parametrize("family", EACH_FAMILY[1:])  # transformers freezes DETR's ResNet
def test_backbones_have_their_own_learning_rate(folders, family):
    model = model_of(folders[family])
    groups = param_groups(model, base_lr=1.0, weight_decay=0.0, backbone_multiplier=0.1)
    slow = {id(p) for group in groups if group["lr"] == 0.1 for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in slow}
    assert names and all(name.startswith(model.backbone_prefixes) for name in names)
    assert not any(model.family.class_head in name for name in names)


def test_images_that_the_loader_resizes_are_warned_of(folders, caplog):
    model_of(folders["detr"], INPUT__MIN_SIZE_TEST=800)
    assert "INPUT.MIN_SIZE_TEST is 800, so images are resized twice" in caplog.text
