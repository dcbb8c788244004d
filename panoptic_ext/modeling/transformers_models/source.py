"""Where a network of transformers comes from: a folder, the hub, or the text that a run keeps."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from panoptic_ext.errors import CheckpointError, ConfigError, quoted, unknown
from panoptic_ext.hub import hub_address, why_unknown_host
from panoptic_ext.modeling.transformers_models.families import FAMILIES
from panoptic_ext.optional_packages import import_optional

__all__ = ["Source", "import_transformers", "read_source", "source_of_text"]

logger = logging.getLogger(__name__)

_TASKS = ("panoptic", "instance", "semantic")


def import_transformers() -> ModuleType:
    """The package transformers.

    Raises:
        ConfigError: it is not installed, or cannot use the installed torch.
    """
    what = "MODEL.META_ARCHITECTURE TransformersPanoptic"
    transformers = import_optional("transformers", "hf", what)
    if not transformers.utils.is_torch_available():
        raise ConfigError(
            f"transformers {transformers.__version__} cannot use this torch; install versions that "
            "fit each other: pip install 'panoptic_ext[hf]'"
        )
    return transformers


@dataclass
class Source:
    """Configs of a network and of its image processor; no weights.

    Attributes:
        config: transformers' config of the network.
        processor: its image processor.
        name: the folder or name on the hub, or what errors call the text of a run.
        task_tokens: OneFormer's input for each task, token ids; {} for the other families.
        tokenizer: OneFormer's, to save it with the model; None where it was not read.
    """

    config: Any
    processor: Any
    name: str
    task_tokens: dict[str, list[int]]
    tokenizer: Any = None

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in the order of their ids."""
        names = {int(i): str(name) for i, name in self.config.id2label.items()}
        return [names.get(i, "") for i in range(max(names, default=-1) + 1)]

    def network(self, *, pretrained: bool) -> nn.Module:
        """The network with the labels of the source.

        Args:
            pretrained: read its weights; otherwise they are random.

        Raises:
            CheckpointError: the weights cannot be read, or do not fit.
        """
        kind = getattr(import_transformers(), FAMILIES[self.config.model_type].network)
        if not pretrained:
            return kind(without_backbone_weights(self.config))
        loaded, info = _reading(
            "weights", self.name, functools.partial(kind.from_pretrained, output_loading_info=True)
        )
        missing = _needed(loaded, info["missing_keys"])
        if missing:
            raise CheckpointError(
                f"the weights of {quoted(self.name)} lack {len(missing)} of the network's tensors, "
                f"e.g. {missing[0]}; a model for detection or for classification has no masks: "
                "name a panoptic one. Another major version of transformers may have other tensors"
            )
        return loaded

    def to_text(self) -> str:
        """JSON from which `source_of_text` makes an equal source."""
        config = self.config.to_dict()
        config.pop("label2id", None)
        processor = json.loads(self.processor.to_json_string())
        # Files of class names on the hub, which only OneFormer's own training targets need.
        for key in ("repo_path", "class_info_file", "metadata"):
            processor.pop(key, None)
        processor.setdefault("image_processor_type", type(self.processor).__name__)
        content = {"config": config, "processor": processor, "task_tokens": self.task_tokens}
        return json.dumps(content, sort_keys=True)


def read_source(name: str) -> Source:
    """Read the configs of a folder or of a model on the hub.

    Raises:
        ConfigError: there is no such model, it cannot be read, or it is of another kind.
    """
    if not name:
        raise ConfigError(
            "MODEL.TRANSFORMERS.NAME_OR_PATH is empty; give a folder with a config.json, or a name "
            "on the hub such as facebook/detr-resnet-50-panoptic"
        )
    transformers = import_transformers()
    name = _existing_folder(name)
    read = transformers.PretrainedConfig.get_config_dict
    values = _reading("config.json", name, read)[0]
    # Checked first, as AutoConfig does not say which versions know a family.
    if "model_type" in values:
        _check_family(str(values["model_type"]), name)
    config = _reading("config.json", name, transformers.AutoConfig.from_pretrained)
    _check_family(config.model_type, name)
    read = transformers.AutoImageProcessor.from_pretrained
    processor = _reading("preprocessor_config.json", name, read)
    tokenizer, tokens = None, {}
    if config.model_type == "oneformer":
        read = transformers.AutoTokenizer.from_pretrained
        tokenizer = _reading("tokenizer", name, read)
        tokens = {task: _task_tokens(tokenizer, task, config.task_seq_len) for task in _TASKS}
    return Source(config, processor, name, tokens, tokenizer)


def source_of_text(text: str, name: str) -> Source:
    """The source that `Source.to_text` wrote; see MODEL.TRANSFORMERS.ARCHITECTURE.

    Args:
        text: JSON.
        name: of the model that it came from, for messages.

    Raises:
        ConfigError: the text is not such a JSON.
    """
    transformers = import_transformers()
    try:
        content = json.loads(text)
        config, processor = dict(content["config"]), dict(content["processor"])
        # The text is a user's file: only names of transformers' own classes are taken from it.
        kind = getattr(transformers, str(processor["image_processor_type"]))
        config["id2label"] = {int(i): name for i, name in config["id2label"].items()}
        _check_family(str(config["model_type"]), name)
        made = transformers.AutoConfig.for_model(**config)
        tokens = dict(content.get("task_tokens", {}))
        return Source(made, _processor_of_text(kind, processor, config["id2label"]), name, tokens)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"MODEL.TRANSFORMERS.ARCHITECTURE cannot be used ({type(error).__name__}: {error}); "
            "take it from the config.yaml of a run unchanged, or leave it empty and give "
            "MODEL.TRANSFORMERS.NAME_OR_PATH"
        ) from error


def without_backbone_weights(config: Any) -> Any:
    """A copy of a network's config that fetches no weights for its backbone."""
    config = copy.deepcopy(config)
    for part in (config, getattr(config, "backbone_config", None)):
        if part is not None and getattr(part, "use_pretrained_backbone", None):
            part.use_pretrained_backbone = False
    return config


def _needed(network: nn.Module, missing: Iterable[str]) -> list[str]:
    """Names of missing tensors, sorted, without those that a part of the network does not use.

    Swin's backbone names the last norm so, but transformers asks the whole network alone.
    """
    patterns = {
        pattern
        for part in network.modules()
        for pattern in getattr(part, "_keys_to_ignore_on_load_missing", None) or ()
    }
    return sorted(name for name in missing if not any(re.search(p, name) for p in patterns))


def _check_family(model_type: str, name: str) -> None:
    """Raise ConfigError if this package or the installed transformers lacks a kind of model."""
    if model_type not in FAMILIES:
        kind = f"kind of panoptic model in {quoted(name)}:"
        raise ConfigError(unknown(kind, model_type, sorted(FAMILIES)))
    transformers = import_transformers()
    there = sorted(kind for kind, f in FAMILIES.items() if hasattr(transformers, f.network))
    if model_type not in there:
        raise ConfigError(
            f"{quoted(name)} is a model of the family {model_type}, which transformers "
            f"{transformers.__version__} lacks; it has {', '.join(there)}. Install a newer one: "
            "pip install --upgrade transformers"
        )


def _processor_of_text(kind: Any, values: dict[str, Any], labels: dict[int, str]) -> Any:
    """An image processor of class `kind` from its values, without files of class names."""
    if "class_info_file" not in inspect.signature(kind).parameters:
        return kind.from_dict(values)
    # OneFormer's of transformers 4 reads such a file when it is made, though only its own training
    # targets need one.
    info = {str(i): {"name": label, "isthing": 0} for i, label in labels.items()}
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "classes.json"), "w", encoding="utf-8") as file:
            json.dump(info, file)
        made = kind.from_dict({**values, "repo_path": folder, "class_info_file": "classes.json"})
    made.repo_path = made.class_info_file = made.metadata = None
    return made


def _existing_folder(name: str) -> str:
    """The name, with "~" replaced; raises ConfigError if it is the path of no folder."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return path
    if path.startswith(("/", ".")) or path.count("/") > 1 or os.path.exists(path):
        raise ConfigError(
            f"MODEL.TRANSFORMERS.NAME_OR_PATH {quoted(name)} is no folder; give one that "
            "save_pretrained wrote (with config.json, preprocessor_config.json and "
            "model.safetensors), or a name on the hub. A run's checkpoint needs neither: its "
            "config.yaml holds the network's config, so give --config-file the run's folder"
        )
    return name


def _reading(what: str, name: str, read: Callable[..., Any]) -> Any:
    """Call `read` with a name, and turn transformers' errors into one that says how to mend it."""
    is_folder = os.path.isdir(name)
    unknown_host = "" if is_folder else why_unknown_host(hub_address())
    try:
        return read(name, local_files_only=bool(unknown_host))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = unknown_host or " ".join(str(error).split()).rstrip(".")
        kind = CheckpointError if what == "weights" else ConfigError
        place = "" if is_folder else f"there is no folder {os.path.abspath(name)}; on the hub, "
        raise kind(
            f"MODEL.TRANSFORMERS.NAME_OR_PATH {quoted(name)}: {place}its {what} cannot be "
            f"read: {reason}. Give a folder that save_pretrained wrote (with config.json, "
            "preprocessor_config.json and model.safetensors), or a name on the "
            "hub; without a network, the hub's files must be in its cache ($HF_HOME)"
        ) from error


def _task_tokens(tokenizer: Any, task: str, length: int) -> list[int]:
    """OneFormer's text of a task as token ids, 0 where it is padded."""
    encoded = tokenizer(
        [f"the task is {task}"], padding="max_length", max_length=length, truncation=True
    )
    pairs = zip(encoded["input_ids"][0], encoded["attention_mask"][0], strict=True)
    return [int(token) * int(attended) for token, attended in pairs]
