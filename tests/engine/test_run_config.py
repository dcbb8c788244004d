"""From config to a checked run: classes from the data, early errors for what cannot work."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from panoptic_ext.commands.train import main
from panoptic_ext.engine.device import choose_device, set_precision
from panoptic_ext.engine.distributed import check_workers, make_local_group
from panoptic_ext.engine.output_folder import prepare_output
from panoptic_ext.engine.run_config import load_cfg, warn_if_warmup_never_ends
from panoptic_ext.engine.run_info import git_state, save_run_info
from panoptic_ext.engine.trainer import Trainer, is_for_console
from panoptic_ext.errors import ConfigError, PanopticExtError
from tests import ROOT
from tests.tiny.training import NAME, tiny_cfg

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def write_json(folder: Path, names: dict[str, int]) -> str:
    """A panoptic JSON without images; names -> isthing."""
    path = folder / f"{'-'.join(names)}.json"
    categories = [
        {"id": i + 1, "name": name, "isthing": isthing, "color": [i, i, i]}
        for i, (name, isthing) in enumerate(names.items())
    ]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return str(path)


def opts_of(name: str, path: str) -> list[str]:
    prefix = f"DATASETS.PANOPTIC.{name}"
    folder = str(Path(path).parent)
    return [f"{prefix}.JSON", path, f"{prefix}.IMAGE_ROOT", folder, f"{prefix}.PNG_ROOT", folder]


@pytest.fixture
def opts(tmp_path: Path) -> list[str]:
    path = write_json(tmp_path, {"sky": 0, "cat": 1, "dog": 1})
    return [
        *opts_of("engine_a", path),
        *("DATASETS.TRAIN", "['engine_a']", "DATASETS.TEST", "['engine_a']"),
        *("MODEL.META_ARCHITECTURE", "UnifiedPanopticFPN"),
    ]


def test_numbers_of_classes_come_from_the_data(opts: list[str]) -> None:
    cfg = load_cfg("", opts)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (3, 2)
    assert cfg.is_frozen()


def test_given_numbers_are_checked(opts: list[str]) -> None:
    load_cfg("", [*opts, "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    with pytest.raises(ConfigError, match=r"command line: MODEL.ROI_HEADS.NUM_CLASSES = 7, but "
                       r"data set engine_a has 2 thing categories; leave the key out"):  # fmt: skip
        load_cfg("", [*opts, "MODEL.ROI_HEADS.NUM_CLASSES", "7"])
    with pytest.raises(ConfigError, match=r"SEM_SEG_HEAD.NUM_CLASSES = 54.*has 3 categories"):
        load_cfg("", [*opts, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"])


def test_a_data_set_chosen_over_a_base_file_wins_over_its_number_of_classes(
    opts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A published file, which cannot be edited, names its own data set's classes."""
    published = (
        "MODEL: {SEM_SEG_HEAD: {NUM_CLASSES: 133, IGNORE_VALUE: 65}}\nDATASETS: {TRAIN: [x]}\n"
    )
    (tmp_path / "published.yaml").write_text(published)
    cfg = load_cfg(str(tmp_path / "published.yaml"), opts)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) == (3, 255)
    first, second = caplog.messages
    assert "published.yaml:1: MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133, but data set engine_a" in first
    assert "the data set's 3 is taken" in first and "IGNORE_VALUE = 65" in second


def test_a_wrong_number_beside_its_data_set_in_a_base_is_an_error_that_can_be_mended(
    opts: list[str], tmp_path: Path
) -> None:
    """A key cannot be left out of a `_BASE_`, so the data set's number replaces it."""
    names = "DATASETS: {TRAIN: [engine_a], TEST: [engine_a]}\n"
    (tmp_path / "base.yaml").write_text(f"MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: 9}}}}\n{names}")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml\nSEED: 1\n")
    load_cfg("", opts)  # registers engine_a
    arch = opts[-2:]
    with pytest.raises(ConfigError, match=r"base.yaml:1: .*NUM_CLASSES = 9, but .*; set it to 3$"):
        load_cfg(str(tmp_path / "mine.yaml"), arch)
    cfg = load_cfg(str(tmp_path / "mine.yaml"), [*arch, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_other_models_keep_their_numbers(opts: list[str]) -> None:
    cfg = load_cfg("", [*opts, "MODEL.META_ARCHITECTURE", NAME])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54


@pytest.mark.parametrize("base", ["UnifiedPanopticFPN", "EfficientPS", "PanopticExtMaskFormer"])
def test_a_third_partys_subclass_gets_the_numbers_of_its_base(opts: list[str], base: str) -> None:
    """F9: the module's name decided, so that a subclass in another package kept 54 and 80."""
    subclass = type("ThirdPartysModel", (META_ARCH_REGISTRY.get(base),), {"__module__": "theirs"})
    META_ARCH_REGISTRY._do_register("ThirdPartysModel", subclass)
    try:
        cfg = load_cfg("", [*opts, "MODEL.META_ARCHITECTURE", "ThirdPartysModel"])
    finally:
        del META_ARCH_REGISTRY._obj_map["ThirdPartysModel"]
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (3, 2)


def test_train_and_test_must_agree(opts: list[str], tmp_path: Path) -> None:
    other = opts_of("engine_b", write_json(tmp_path, {"sky": 0, "cat": 1, "cow": 1}))
    with pytest.raises(PanopticExtError, match=r"'dog'.*'cow'"):
        load_cfg("", [*opts, *other, "DATASETS.TEST", "['engine_b']"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["DATASETS.TRAIN", "['engine_aa']"], r"unknown data set in DATASETS.TRAIN 'engine_aa'; "
         r"did you mean 'engine_a'.*DATASETS.PANOPTIC.engine_aa"),
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "2"], r"line: MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 2"
         r", but void is 255 in data set engine_a .*engine_a.IGNORE_LABEL\); leave the key out"),
        (["FLOAT32_PRECISON", "high"], r"unknown config key"),
        (["SOLVER.IMS_PER_BATCH", "0"], r"SOLVER.IMS_PER_BATCH = 0, expected at least 1"),
        (["SOLVER.TIME_BUDGET", "1e999"], r"TIME_BUDGET = inf, expected .* a finite number"),
        (["DATALOADER.REPEAT_THRESHOLD", "-1.0"], r"REPEAT_THRESHOLD = -1.0, expected at least 0"),
        *(
            ([key, "1e999"], f"{key} = inf, expected .* a finite number")
            for key in (
                "SOLVER.BASE_LR",
                "SOLVER.BACKBONE_MULTIPLIER",
                "SOLVER.AUTO_SCALE.EPOCHS",
                "DATALOADER.RANDOM_SUBSET_RATIO",
            )
        ),
        (["SOLVER.BASE_LR", "0.0"], r"BASE_LR"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], r"CHECKPOINT_PERIOD = 0"),
        (["MODEL.META_ARCHITECTURE", "UnifiedPanopticFNP"], r"did you mean 'UnifiedPanopticFPN'"),
        (["MODEL.DEVICE", "gpu"], r"MODEL.DEVICE = 'gpu', expected 'cuda'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    opts: list[str], extra: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_cfg("", [*opts, *extra])


@pytest.mark.parametrize("arch", ["UnifiedPanopticFPN", "PanopticExtMaskFormer", NAME])
@pytest.mark.parametrize("label", [65, 300])
def test_void_comes_from_the_data(opts: list[str], arch: str, label: int) -> None:
    opts = [*opts, "DATASETS.PANOPTIC.engine_a.IGNORE_LABEL", str(label)]
    opts += ["MODEL.META_ARCHITECTURE", arch]
    cfg = load_cfg("", opts)
    assert label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    load_cfg("", [*opts, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", str(label)])
    with pytest.raises(ConfigError, match=rf"IGNORE_VALUE = 255, but void is {label}.*{label}$"):
        load_cfg("", [*opts, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "255"])


def test_void_of_train_and_test_must_agree(opts: list[str], tmp_path: Path) -> None:
    other = opts_of("engine_b", str(tmp_path / "sky-cat-dog.json"))
    other += ["DATASETS.PANOPTIC.engine_b.IGNORE_LABEL", "65", "DATASETS.TEST", "['engine_b']"]
    with pytest.raises(ConfigError, match=r"void is 255 in data set engine_a and 65 in engine_b"):
        load_cfg("", [*opts, *other])


def test_void_among_the_classes(opts: list[str]) -> None:
    MetadataCatalog.get("foreign").set(
        **{key: ["a", "b"] for key in ("thing_classes", "stuff_classes")},
        thing_dataset_id_to_contiguous_id={1: 0},
        stuff_dataset_id_to_contiguous_id={2: 1},
        ignore_label=1,
    )
    DatasetCatalog.register("foreign", lambda: [])
    foreign = ["DATASETS.TRAIN", "['foreign']", "DATASETS.TEST", "[]"]
    with pytest.raises(ConfigError, match=r"void is 1 in data set foreign, within its 2 class"):
        load_cfg("", [*opts[-2:], *foreign])
    with pytest.raises(PanopticExtError, match=r"ignore_label 2 lies inside the class range"):
        load_cfg("", [*opts, "DATASETS.PANOPTIC.engine_a.IGNORE_LABEL", "2"])


def test_data_is_not_needed_to_predict(opts: list[str], tmp_path: Path) -> None:
    (tmp_path / "sky-cat-dog.json").unlink()
    given = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    cfg = load_cfg("", [*opts, *given], use_data=False)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_batch_and_workers(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, IMS_PER_BATCH=4)
    check_workers(cfg, 2)
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH = 4 images .* 3 workers; make it a mult"):
        check_workers(cfg, 3)


def test_one_gpu_for_several_workers(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, IMS_PER_BATCH=4)
    cfg.MODEL.DEVICE = "cuda:1"
    check_workers(cfg, 1)
    with pytest.raises(ConfigError, match=r"cuda:1 would put all 2 workers on one GPU; set it to"):
        check_workers(cfg, 2)
    cfg.MODEL.DEVICE = "cuda"
    check_workers(cfg, 2)


def test_precision_of_detectron2_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    cfg = tiny_cfg(tmp_path)
    if "FLOAT32_PRECISION" in cfg:
        del cfg["FLOAT32_PRECISION"]
    set_precision(cfg)  # v0.6
    for value in ("", "high"):
        cfg.FLOAT32_PRECISION = value
        set_precision(cfg)
    assert chosen == ["high"]
    cfg.FLOAT32_PRECISION = "low"
    with pytest.raises(ConfigError, match=r"unknown FLOAT32_PRECISION 'low'; .*known: '', highest"):
        set_precision(cfg)


def test_cuda_falls_back_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.DEVICE = "cuda"
    cfg.SOLVER.AMP.ENABLED = True
    cfg.freeze()
    logging.getLogger("panoptic_ext").propagate = True
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED and cfg.is_frozen()
    assert [r.message for r in caplog.records if "CUDA is not available" in r.message]
    caplog.clear()
    choose_device(cfg)
    assert not caplog.records


@pytest.mark.parametrize(
    ("model", "warns"),
    [
        ("panoptic_fpn/Base-PanopticFPN-Small", False),
        ("efficientps/Base-EfficientPS-Small", False),
        ("mask2former/Base-Mask2Former-Small", False),
        ("panoptic_fpn/Base-PanopticFPN", True),
        ("mask2former/Base-Mask2Former", True),
    ],
)
def test_a_model_made_for_the_cpu_takes_it_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: str, warns: bool
) -> None:
    """A full-size model keeps the warning."""
    monkeypatch.setattr(logging.getLogger("panoptic_ext"), "propagate", True)
    caplog.set_level(logging.INFO, "panoptic_ext")
    path = f"{ROOT}/configs/common/{model}.yaml"
    for has_cuda, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        cfg = load_cfg(path, use_data=False)
        caplog.clear()
        choose_device(cfg)
        assert device == cfg.MODEL.DEVICE
        levels = [record.levelno for record in caplog.records]
        assert levels == ([] if has_cuda else [logging.WARNING if warns else logging.INFO])
    assert ("much slower" in caplog.text) is warns


def test_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*file.out cannot be written"):
        prepare_output(str(tmp_path / "file" / "out"))
    prepare_output(str(tmp_path / "new" / "out"))
    assert not list((tmp_path / "new" / "out").iterdir())


def test_run_info_loads_again(opts: list[str], tmp_path: Path) -> None:
    cfg = load_cfg("", opts)
    save_run_info(cfg, str(tmp_path))
    again = load_cfg(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    info = json.loads((tmp_path / "run_info.json").read_text())
    assert info["versions"]["torch"] == torch.__version__
    # v0.6 and Detectron2 main both call themselves 0.6.
    is_main = "FLOAT32_PRECISION" in get_cfg()
    assert info["versions"]["detectron2"].endswith("(main)") == is_main
    assert info["detectron2"]["is_main"] == is_main
    assert info["detectron2"]["imported_from"] == os.path.realpath(detectron2.__path__[0])
    assert (tmp_path / "metadata.json").exists()
    assert "detectron2" in (tmp_path / "environment.txt").read_text()


def test_local_group_of_detectron2_main(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(comm, "create_local_process_group", made.append, raising=False)
    make_local_group(4)
    assert made == [4]


def test_git_state_is_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    tracked, installed = tmp_path / "tracked.py", tmp_path / ".venv" / "installed.py"
    installed.parent.mkdir()
    for path in (tracked, installed):
        path.write_text("")
    assert git_state(str(tracked)) is None
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "tracked.py"), (*who, "commit", "-q", "-m", "one")):
        subprocess.run(("git", "-C", str(tmp_path), *command), check=True)
    assert git_state(str(installed)) is None
    found = git_state(str(tracked))
    assert found is not None and len(found["commit"]) == 40 and found["dirty"]


@pytest.mark.parametrize(("iterations", "warns"), [(500, True), (1000, True), (1001, False)])
def test_a_warmup_that_never_ends_gets_a_warning(caplog, iterations: int, warns: bool) -> None:
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = iterations, 1000
    with caplog.at_level("WARNING", "panoptic_ext"):
        warn_if_warmup_never_ends(cfg)
    texts = [r.getMessage() for r in caplog.records]
    assert len(texts) == int(warns)
    assert not warns or texts[0].startswith(
        f"SOLVER.MAX_ITER {iterations} is not more than SOLVER.WARMUP_ITERS 1000: "
    )


def test_an_evaluation_without_weights_ends_before_the_model_is_built(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr(Trainer, "build_model", lambda cfg: pytest.fail("it was built"))
    config = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")
    data = ("DATASETS.TRAIN", "[]", "DATASETS.TEST", "[]", "MODEL.DEVICE", "cpu")
    argv = ["--config-file", config, "--eval-only", "OUTPUT_DIR", str(tmp_path / "no"), *data]
    assert main(argv) == 2
    assert "error: no weights to evaluate: MODEL.WEIGHTS is empty" in capsys.readouterr().err
    assert main([*argv, "MODEL.WEIGHTS", "nowhere.pth"]) == 2
    assert "error: checkpoint nowhere.pth does not exist" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_layers_of_a_model_go_into_the_file_alone(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", "panoptic_ext"):
        Trainer.build_model(tiny_cfg(tmp_path))
    brief, whole = caplog.records
    assert brief.getMessage() == "Model: PanopticExtTestTiny, 37 parameters"
    assert is_for_console(brief) and not is_for_console(whole)
    assert "(backbone): Linear" in whole.getMessage()
