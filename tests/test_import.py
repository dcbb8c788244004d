"""What importing panoptic_ext does, and what it leaves alone; each case in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

# Packages that are only imported by what needs them.
HEAVY = (
    "cityscapesscripts",
    "fiftyone",
    "huggingface_hub",
    "hypothesis",
    "matplotlib",
    "pandas",
    "panopticapi",
    "pytest",
    "safetensors",
    "scipy.optimize",
    "supervision",
    "tensorboard",
    "timm",
    "torch.utils.tensorboard",
    "torchmetrics",
    "transformers",
)


def run(
    code: str, *, path: Path | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python with `options`; the repository and `path` are importable."""
    entries = [str(path)] if path else []
    old = os.environ.get("PYTHONPATH")
    entries += [str(ROOT), *([old] if old else [])]
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entries)},
        capture_output=True,
        text=True,
        check=False,
    )


def run_well(code: str, *, path: Path | None = None) -> str:
    """Run `code`, which must not fail; what it printed."""
    result = run(code, path=path)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


SNAPSHOT = """
import json, locale, logging, os, random, signal, sys, warnings
import cv2, matplotlib, numpy, torch, yaml
import PIL.Image, PIL.ImageFile, PIL.ImageFont
import detectron2.config, detectron2.data, detectron2.modeling, detectron2.evaluation
import detectron2.engine, detectron2.utils.visualizer, fvcore.common.config, iopath.common.file_io
import detectron2.model_zoo

def of_torch():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "rng": torch.get_rng_state().tolist(), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(), "anomaly": torch.is_anomaly_enabled(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "cuda": (cuda.allow_tf32, cuda.allow_fp16_reduced_precision_reduction),
        "cuda initialised": torch.cuda.is_initialized(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "start method": torch.multiprocessing.get_start_method(allow_none=True),
        "print": vars(torch._tensor_str.PRINT_OPTS),
    }

def of_libraries():
    return {
        "numpy": (numpy.geterr(), numpy.get_printoptions(), numpy.random.get_state()),
        "pil": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "pil formats": (list(PIL.Image.ID), dict(PIL.Image.EXTENSION)),
        "matplotlib": (matplotlib.rcParams._get_backend_or_none(), dict(matplotlib.rcParams)),
        "cv2": (cv2.getNumThreads(), cv2.useOptimized()),
        "yaml": [
            {tag: id(f) for tag, f in getattr(yaml, name).yaml_constructors.items()}
            for name in ("SafeLoader", "FullLoader", "UnsafeLoader", "Loader")
        ],
    }

def of_python():
    loggers = ("", "detectron2", "fvcore", "PIL", "torch", "py.warnings")
    return {
        "logging": [
            (name, list(logging.getLogger(name).handlers), logging.getLogger(name).level,
             logging.getLogger(name).propagate) for name in loggers
        ],
        "warnings": list(warnings.filters), "random": random.getstate(),
        "sys": (list(sys.path), list(sys.meta_path), sys.excepthook, sys.getrecursionlimit()),
        "environ": dict(os.environ), "cwd": os.getcwd(), "locale": locale.setlocale(locale.LC_ALL),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
    }

def of_modules():
    \"\"\"Every function, class and value of these packages, by identity.\"\"\"
    packages = ("detectron2", "fvcore", "iopath", "yacs", "PIL", "numpy", "pycocotools")
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in packages and name not in ("torch", "torch.nn"):
            continue
        for key, value in list(vars(module).items()):
            found[f"{name}.{key}"] = id(value)
            if isinstance(value, type):
                found |= {f"{name}.{key}.{k}": id(v) for k, v in vars(value).items()
                          if callable(v) and k != "__annotate__"}
    return found

def of_detectron2():
    from detectron2.data import DatasetCatalog, MetadataCatalog
    registries = {f"{m}.{k}": v for m, module in sorted(sys.modules.items())
                  if m.startswith("detectron2.") for k, v in vars(module).items()
                  if type(v).__name__ == "Registry"}
    entries = {f"{name} {key}": id(value) for name, r in registries.items() for key, value in r}
    entries |= {f"data set {name}": id(f) for name, f in DatasetCatalog.data.items()}
    entries |= {f"metadata {n}": repr(sorted(m.as_dict().items(), key=lambda item: item[0]))
                for n, m in MetadataCatalog.data.items() if type(m).__name__ == "Metadata"}
    return entries | {"cfg": detectron2.config.get_cfg().dump()}

def snapshot():
    state = {}
    for part in (of_torch, of_libraries, of_python, of_modules, of_detectron2):
        values = part()
        as_text = part not in (of_modules, of_detectron2)
        state |= {f"{part.__name__} {k}": repr(v) if as_text else v for k, v in values.items()}
    return state
"""


def test_changes_no_global_state() -> None:
    out = run_well(
        SNAPSHOT
        + textwrap.dedent("""
        before = snapshot()
        import panoptic_ext, panoptic_ext.evaluation, panoptic_ext.visualization
        after = snapshot()
        changed = [key for key, value in before.items() if after.get(key) != value]
        # A submodule that is imported for the first time becomes an attribute of its parent; what
        # is new is allowed, and what was there must be the same.
        zoo = {f"of_modules detectron2.model_zoo{module}.{name}" for module in ("", ".model_zoo")
               for name in ("get", "get_config", "get_config_file", "get_checkpoint_url")}
        assert set(changed) == zoo, set(changed) ^ zoo
        from panoptic_ext.model_zoo import detectron2_zoo
        detectron2_zoo.uninstall()
        after = snapshot()
        assert all(after[key] == before[key] for key in zoo)
        assert len(before) > 5000, len(before)
        print("unchanged")
        """)
    )
    assert out.endswith("unchanged\n")


def test_warns_of_nothing_and_hides_no_warning_of_the_user() -> None:
    """Torch's warnings about what Detectron2 and fvcore script when they are imported."""
    result = run(
        """
        import warnings
        import torch, torchvision  # they add filters of their own
        filters = list(warnings.filters)
        import panoptic_ext
        import panoptic_ext.engine, panoptic_ext.evaluation, panoptic_ext.visualization
        assert warnings.filters == filters
        try:
            warnings.warn("`torch.jit.script` is deprecated", FutureWarning)
        except FutureWarning:
            print("the user's own")
        """,
        options=("-W", "error"),
    )
    assert (result.stdout, result.stderr) == ("the user's own\n", "")


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """One import of Detectron2 and then panoptic_ext: new modules, calls of functions, names."""
    out = run_well("""
        import json, sys
        calls = 0

        def count(frame, event, argument):
            global calls
            calls += event == "call"

        sys.setprofile(count)
        import detectron2.config, detectron2.data, detectron2.modeling
        detectron2_calls, before = calls, set(sys.modules)
        import panoptic_ext
        sys.setprofile(None)
        print(json.dumps({
            "modules": sorted(set(sys.modules) - before),
            "calls": (detectron2_calls, calls - detectron2_calls),
            "architecture":
                detectron2.modeling.META_ARCH_REGISTRY.get("UnifiedPanopticFPN").__module__,
            "missing": sorted(set(panoptic_ext.__all__) - set(dir(panoptic_ext))),
        }))
    """)
    return json.loads(out)


def test_registers_and_has_its_names(imported: dict[str, Any]) -> None:
    assert imported["architecture"].startswith("panoptic_ext.")
    assert imported["missing"] == []


def test_imports_nothing_heavy(imported: dict[str, Any]) -> None:
    new = imported["modules"]
    heavy = [n for n in new if any(n == h or n.startswith(f"{h}.") for h in HEAVY)]
    assert not heavy, f"import panoptic_ext imports {heavy}"
    others = [name for name in new if name.split(".")[0] != "panoptic_ext"]
    assert len(others) < 150, others


def test_takes_little_more_work_than_detectron2(imported: dict[str, Any]) -> None:
    """In calls of functions, which are as many on a busy machine; today they are a hundredth."""
    base, extra = imported["calls"]
    assert extra < 0.1 * base, f"Detectron2 {base} calls, panoptic_ext {extra} more"


def test_tools_of_another_distribution_do_not_hide_ours(tmp_path: Path) -> None:
    """Detectron2 main's wheel has a top-level package `tools`, which is before a plain folder."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")
    spec = PathFinder.find_spec("tools", [str(ROOT), str(tmp_path)])
    assert spec is not None and spec.origin == str(ROOT / "tools" / "__init__.py")


# Without a Detectron2 that fits

BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={blocked!r})

sys.meta_path.insert(0, Block())
import panoptic_ext
"""


def last_lines(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    return result.stderr[result.stderr.rindex("ImportError") :]


def test_without_detectron2() -> None:
    error = last_lines(run(BLOCK.format(blocked="detectron2")))
    assert "Detectron2 is missing" in error
    assert "python tools/install_detectron2.py" in error and "https://" in error


def test_detectron2_without_its_dependencies() -> None:
    error = last_lines(run(BLOCK.format(blocked="fvcore")))
    assert "Detectron2 is installed but needs 'fvcore'" in error
    assert "pip install fvcore" in error


@pytest.mark.parametrize("line", ["__version__ = '0.5'", "__version__ = '0.4+cu101'", ""])
def test_older_detectron2(line: str, tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(line)
    error = last_lines(run("import panoptic_ext", path=tmp_path))
    found = line.split("'")[1] if line else "unknown"
    assert f"needs Detectron2 0.6 or newer; found {found} in {tmp_path}" in error


def test_newer_detectron2_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("__version__ = '0.10.dev1'")
    run_well(
        f"""
        import importlib.util
        spec = importlib.util.spec_from_file_location(
            "check", {str(ROOT / "panoptic_ext" / "_detectron2.py")!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.require_detectron2()
        """,
        path=tmp_path,
    )
