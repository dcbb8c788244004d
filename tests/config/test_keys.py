"""Every key that panoptic_ext adds to a config is read by somebody; Detectron2's stay as they are.

The reads are recorded while shipped configs are prepared, and models, optimisers, loaders and
evaluators are built from them, as a run does. Giving a key a value reads nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.left_out import DERIVED_KEYS, get_key
from panoptic_ext.config.loggers import check_loggers
from panoptic_ext.config.published_names import resolve_published_names
from panoptic_ext.data import register_from_config
from panoptic_ext.engine import Trainer
from panoptic_ext.engine.auto_batch import with_fitting_batch
from panoptic_ext.engine.class_take_over import class_take_over
from panoptic_ext.engine.device import choose_device
from panoptic_ext.engine.evaluate import build_evaluator
from panoptic_ext.engine.precision import evaluation_precision
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.trackers import mlflow_names, wandb_options
from panoptic_ext.fusion import PANOPTIC_FUSION_REGISTRY
from panoptic_ext.modeling.backbone.swin import SwinTransformer
from tests import ROOT
from tests.config.recorder import RecordingNode, leaves, plain
from tests.config.shipped import LEAVES, load_shipped, without_initialisation

# Models are of one kind, and read the same keys, where these are equal.
KIND = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE.NAME",
    "MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    "MODEL.PANOPTIC_FUSION.NAME",
    "MODEL.MASK_FORMER.TASK",
)
# Runs on shapes that together need every part of engine and data.
RUNS: list[tuple[str, dict[str, object]]] = [
    ("mask2former/mask2former_R18_shapes", {"INPUT__AUGMENTATION": "lsj"}),
    (
        "mask2former/mask2former_instance_R18_shapes",
        {"INPUT__CROP__ENABLED": True, "DATALOADER__SAMPLER_TRAIN": "RandomSubsetTrainingSampler"},
    ),
    (
        "efficientps/efficientps_R18_shapes",
        {"SOLVER__LR_SCHEDULER_NAME": "WarmupPolyLR", "SOLVER__AMP__ENABLED": True,
         "SOLVER__AMP__DTYPE": "bfloat16", "SOLVER__AUTO_SCALE__ENABLED": True,
         "SOLVER__AUTO_SCALE__EPOCHS": 1},
    ),
    (
        "panoptic_fpn/panoptic_fpn_R18_shapes",
        {"SOLVER__EMA__ENABLED": True, "TEST__BEST_METRIC": "panoptic_seg/PQ",
         "TEST__EARLY_STOPPING__PATIENCE": 2},
    ),
]  # fmt: skip


def all_keys() -> tuple[dict[str, object], dict[str, object]]:
    """Key -> default: of Detectron2, and with those of panoptic_ext."""
    cfg = get_cfg()
    before = dict(leaves(cfg))
    add_panoptic_ext_config(cfg)
    return before, dict(leaves(cfg))


def added_keys() -> set[str]:
    before, after = all_keys()
    return after.keys() - before.keys()


def one_of_each_kind() -> list[CfgNode]:
    kinds = {}
    for path in LEAVES:
        values = dict(leaves(load_shipped(path)))
        kinds.setdefault(str([values[key] for key in KIND]), load_shipped(path))
    return list(kinds.values())


def with_values(cfg: CfgNode, *opts: object) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def our_backbones() -> list[CfgNode]:
    """With each backbone of panoptic_ext, also those that no shipped config has."""
    cfg = load_shipped(ROOT / "configs/shapes/efficientps/efficientps_R18_shapes.yaml")
    return [
        with_values(cfg, "MODEL.BACKBONE.NAME", name)
        for name, builder in BACKBONE_REGISTRY
        if builder.__module__.startswith("panoptic_ext.") and "two_way_fpn" in name
    ]


def every_fusion() -> list[CfgNode]:
    cfg = load_shipped(ROOT / "configs/shapes/efficientps/efficientps_R18_shapes.yaml")
    return [
        with_values(cfg, "MODEL.PANOPTIC_FUSION.NAME", name)
        for name, fusion in PANOPTIC_FUSION_REGISTRY
        if fusion.__module__.startswith("panoptic_ext.")
    ]


def prepare(cfg: CfgNode, reads: set[str]) -> None:
    """What a run does with a config before it builds, besides merging and checking values."""
    cfg = RecordingNode(plain(cfg), reads)
    cfg.defrost()
    resolve_published_names(cfg)
    register_from_config(cfg)
    cfg.MODEL.DEVICE = "cuda"
    choose_device(cfg)


def run(cfg: CfgNode, reads: set[str]) -> None:
    """Build all that a training and an evaluation build."""
    cfg = RecordingNode(cfg, reads)
    check_loggers(cfg)
    Trainer(with_fitting_batch(cfg))
    wandb_options(cfg)
    mlflow_names(cfg)
    class_take_over(cfg)
    evaluation_precision(cfg)
    build_evaluator(cfg, cfg.DATASETS.TEST[0])


def shapes_cfg(name: str, folder: Path, **changed: object) -> CfgNode:
    """A run on a few images; `changed` has keys with "__" for the dot."""
    values = {
        "MODEL.DEVICE": "cpu", "OUTPUT_DIR": folder / "run", "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.SHAPES.CACHE": folder / "data", "DATASETS.SHAPES.NUM_TRAIN": 4,
        "DATASETS.SHAPES.NUM_VAL": 1, "SOLVER.IMS_PER_BATCH": 2,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    opts = [str(text) for pair in values.items() for text in pair]
    return load_cfg(str(ROOT / f"configs/shapes/{name}.yaml"), opts)


@pytest.fixture(scope="module")
def reads(dataset_jsons: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every key that is read."""
    found: set[str] = set()
    folder = tmp_path_factory.mktemp("shapes")
    with without_initialisation():
        for cfg in [*one_of_each_kind(), *our_backbones(), *every_fusion()]:
            prepare(cfg, found)
            build_model(RecordingNode(cfg, found))
        for name, changed in RUNS:
            run(shapes_cfg(name, folder, **changed), found)
    return found


def test_every_key_is_read(reads: set[str]) -> None:
    assert sorted(added_keys() - reads) == []


def test_a_key_that_nobody_reads_is_found(reads: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    add = add_panoptic_ext_config

    def with_dead_keys(cfg: CfgNode) -> None:
        add(cfg)
        cfg.MODEL.MASK_FORMER.NEVER_READ = 1
        cfg.MODEL.SWIN_TWO = CfgNode({"NAME": "", "NUM_HEADS": 3})

    monkeypatch.setitem(globals(), "add_panoptic_ext_config", with_dead_keys)
    dead = ["MODEL.MASK_FORMER.NEVER_READ", "MODEL.SWIN_TWO.NAME", "MODEL.SWIN_TWO.NUM_HEADS"]
    assert sorted(added_keys() - reads) == dead


# What is read as a block is checked by the function that takes it.
def test_every_key_of_swin_is_an_argument() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    parameters = inspect.signature(SwinTransformer).parameters
    assert {name.lower() for name in cfg.MODEL.SWIN} <= set(parameters)
    assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def test_the_keys_of_detectron2_keep_their_defaults() -> None:
    before, after = all_keys()
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    after |= {key: get_key(cfg, key) for key in DERIVED_KEYS}  # stored as None, read as before
    assert {key: after.get(key) for key in before} == before
    assert {key: type(after[key]) for key in before} == {k: type(v) for k, v in before.items()}
    added = ("MODEL.MASK_FORMER.DEC_LAYERS", "MODEL.SWIN.DEPTHS", "SOLVER.OPTIMIZER")
    assert added_keys().issuperset(added)


def recorded(read: Callable[[CfgNode], object]) -> set[str]:
    """The keys that a function reads of a config A.B, A.C.D, A.C.E."""
    reads: set[str] = set()
    read(RecordingNode(CfgNode({"A": {"B": 1, "C": {"D": 2, "E": 3}}}), reads))
    return reads & {"A.B", "A.C.D", "A.C.E"}


@pytest.mark.parametrize(
    ("read", "keys"),
    [
        (lambda cfg: cfg.A.C.D, {"A.C.D"}),
        (lambda cfg: cfg["A"]["B"], {"A.B"}),
        (lambda cfg: cfg.A.C.get("E"), {"A.C.E"}),
        (lambda cfg: dict(cfg.A.C.items()), {"A.C.D", "A.C.E"}),
        (lambda cfg: cfg.clone().A.B, {"A.B"}),
        (lambda cfg: copy.deepcopy(cfg.A).B, {"A.B"}),
        (lambda cfg: getattr(cfg.A, "F", 0), set()),
        (lambda cfg: cfg.A.C, set()),
        (lambda cfg: setattr(cfg.A, "B", 5), set()),
        (lambda cfg: (str(cfg), cfg.dump(), cfg.freeze(), cfg == cfg.clone()), set()),
    ],
)  # fmt: skip
def test_every_way_to_read_a_key_is_recorded(
    read: Callable[[CfgNode], object], keys: set[str]
) -> None:
    assert recorded(read) == keys


def test_a_recording_config_is_the_config() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.freeze()
    recording = RecordingNode(cfg, set())
    assert recording == cfg and recording.is_frozen() and plain(recording) == cfg
    assert recording.clone() == cfg and recording.dump() == cfg.dump()
    with pytest.raises(AttributeError):
        recording.OUTPUT_DIR = "elsewhere"
