"""Predict images with a trained model, without data set, loader or trainer."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext.config.image_values import side_of_windows
from panoptic_ext.data.datasets.known_classes import set_classes
from panoptic_ext.data.datasets.metadata_file import METADATA_FILE, load_metadata
from panoptic_ext.data.resizing import resize_in_testing
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.files import best_checkpoint
from panoptic_ext.engine.device import choose_device, set_precision
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.engine.precision import evaluation_precision
from panoptic_ext.engine.run_config import has_own_weights, load_cfg, without_pretrained
from panoptic_ext.errors import ConfigError, MemoryNeededError, quoted
from panoptic_ext.modeling.meta_arch.semantic_windows import in_windows
from panoptic_ext.postprocessing import with_extents
from panoptic_ext.prediction.image_arrays import as_bgr_image, is_one_image

__all__ = ["Predictor", "find_weights", "load_run_cfg"]

_CONFIG_FILE = "config.yaml"


class Predictor(DefaultPredictor):
    """Detectron2's DefaultPredictor that reads weights safely and refuses those that do not fit.

    Call it with an image, such as (H, W, 3) uint8. The order of channels is BGR, whatever
    INPUT.FORMAT is. The result is the model's output at H x W: "panoptic_seg" and, where the model
    has them, "sem_seg" and "instances". A list of images gives a list of outputs.

    Attributes:
        cfg: a copy of the config.
        model: in eval mode.
        metadata: of the data set that the model was trained on.
        weights: the file that the weights came from; "" if the model read its own.
        precision: of the forward pass, TEST.AMP_DTYPE.
        window_side: of TEST.SEMANTIC_WINDOWS, pixels; 0 for whole images.
    """

    window_side: int = 0

    def __init__(self, cfg: CN, *, weights: str = "") -> None:
        """
        Args:
            cfg: a config whose data set, or its metadata, is registered (`load_run_cfg` does that).
            weights: a checkpoint; "" takes `find_weights(cfg)`.

        Raises:
            CheckpointError: the weights cannot be read or do not fit.
            ConfigError: there are none.
        """
        self.cfg = cfg.clone()
        self.weights = weights or find_weights(cfg)
        set_precision(cfg)
        # Without a file, the model reads its weights itself.
        built_from = without_pretrained(self.cfg) if self.weights else self.cfg
        self.model = build_model(built_from).eval()
        self.metadata = MetadataCatalog.get(_metadata_name(cfg, self.model))
        if self.weights:
            checkpointer = Checkpointer(
                self.model, save_to_disk=False, allow_pickle=cfg.MODEL.ALLOW_PICKLE
            )
            checkpointer.load(self.weights, checkpointables=[], strict=True)
        self.aug = resize_in_testing(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.precision = evaluation_precision(cfg)
        self.window_side = side_of_windows(cfg)

    def __call__(self, original_image: Any, *, batch_size: int = 1) -> Any:
        """Predict, in the precision of TEST.AMP_DTYPE.

        Args:
            original_image: whatever `as_bgr_image` takes: a path, a PIL image, an array or a
                tensor, BGR and from 0 to 255; or a list, a tuple or a generator of these.
            batch_size: as `predict_each`.

        Returns:
            The model's output for one image; of several images a list of them.

        Raises:
            ImageError, UnreadableFileError: an image cannot be used; of several, it is numbered.
            MemoryNeededError: there is not enough memory for images of this size.
        """
        if not is_one_image(original_image):
            return list(self.predict_each(original_image, batch_size=batch_size))
        return self._predict([self._input(original_image)])[0]

    def predict_each(
        self, images: Iterable[Any], *, batch_size: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Yield the outputs of several images in order, each batch when its first one is due.

        Args:
            images: each as `__call__` takes one; read one batch ahead.
            batch_size: the most images of one size that the model gets at once. Rounding may
                change a pixel at which two classes tie. Meant for a GPU: on a CPU, small models
                took from a third less to a quarter more time for it.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
        batch: list[dict[str, Any]] = []
        for number, image in enumerate(images):
            model_input = self._input(image, f"image {number} of the list")
            # Only neighbours of one size share a batch: padding would change results.
            is_other_size = bool(batch) and model_input["image"].shape != batch[0]["image"].shape
            if len(batch) == batch_size or is_other_size:
                yield from self._predict(batch)
                batch = []
            batch.append(model_input)
        if batch:
            yield from self._predict(batch)

    def _input(self, image: Any, name: str = "the image") -> dict[str, Any]:
        """One input of the model, resized as the data mapper resizes it in testing."""
        pixels = as_bgr_image(image, name)
        height, width = pixels.shape[:2]
        if self.input_format == "RGB":
            pixels = pixels[:, :, ::-1]
        with explained_memory_errors(height, width):
            resized = self.aug.get_transform(pixels).apply_image(pixels)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    @torch.no_grad()
    def _predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        height, width = inputs[0]["height"], inputs[0]["width"]
        try:
            with explained_memory_errors(height, width), self.precision.autocast():
                outputs = in_windows(self.model, self.window_side)(inputs)
        except MemoryNeededError as error:
            if len(inputs) == 1:
                raise
            # The retry below runs after this handler. Within it, Python would keep the error, whose
            # frames hold the tensors of the failed batch.
            _free_frames(error)
            outputs = None
        if outputs is None:  # a smaller batch may fit
            return [self._predict([single])[0] for single in inputs]
        for output in outputs:
            panoptic_seg = output.get("panoptic_seg")
            # Other packages' models, such as Detectron2's PanopticFPN, leave area and bbox out.
            if panoptic_seg is not None and not all("bbox" in s for s in panoptic_seg[1] or ()):
                output["panoptic_seg"] = with_extents(*panoptic_seg)
        return outputs


def _metadata_name(cfg: CN, model: nn.Module) -> str:
    """Name of the metadata with the classes of a model: a data set's, or its own.

    Raises:
        ConfigError: neither the config nor the model names any.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, getattr(model, "metadata_name", ""))
    if not any(names):
        raise ConfigError(
            "DATASETS.TRAIN and DATASETS.TEST are both empty, but the names of the classes "
            "come from a data set; name one in either"
        )
    return names[0]


def _free_frames(error: BaseException | None) -> None:
    """Free the tensors of a failed batch, which the frames of the error and its causes hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def load_run_cfg(path: str, opts: Sequence[str] = (), *, own_data: bool = False) -> CN:
    """Load the config to predict with. The files of a run are enough: its data set may be missing.

    A data set that is already registered under the name of the run's, with other files, stays
    registered if it has the run's classes.

    Args:
        path: a YAML file, or the output folder of a training run.
        opts: KEY VALUE pairs, applied last.
        own_data: whether the run's data sets will be read. If so, a name that is registered with
            other files is an error.

    Returns:
        A frozen config whose classes are registered, on the CPU where there is no CUDA. If the
        folder of the config holds the files of a run, or a checkpoint, OUTPUT_DIR is that folder.

    Raises:
        ConfigError: the config is wrong, or the folder is not one of a run.
        DatasetError: the class names can be read from neither data set nor metadata.json, or a
            data set of the run's name is registered with other classes.
    """
    config = os.path.join(path, _CONFIG_FILE) if os.path.isdir(path) else path
    if os.path.isdir(path) and not os.path.lexists(config):
        raise ConfigError(
            f"{path} has no {_CONFIG_FILE}; expected the output folder of a training run, or a"
            " YAML file"
        )
    metadata = os.path.join(os.path.dirname(os.path.abspath(config)), METADATA_FILE)
    left_by_run = os.path.basename(config) == _CONFIG_FILE and os.path.lexists(metadata)
    saved = load_metadata(metadata) if left_by_run else None
    cfg = load_cfg(config, opts, use_data=saved is None, trained_on=None if own_data else saved)
    if saved is not None:
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            set_classes(name, saved.as_dict())
    choose_device(cfg, training=False)
    folder = os.path.dirname(os.path.abspath(config))
    is_of_run = left_by_run or os.path.isdir(path) or _has_checkpoint(folder)
    if is_of_run and "OUTPUT_DIR" not in opts[::2]:
        _set_output_dir(cfg, folder)
    return cfg


def _set_output_dir(cfg: CN, folder: str) -> None:
    """Set OUTPUT_DIR to the folder of the run, which may have been moved since the training."""
    cfg.defrost()
    cfg.OUTPUT_DIR = folder
    cfg.freeze()


def find_weights(cfg: CN, *, opts: Sequence[str] = (), path: str = "") -> str:
    """Find the weights to predict with; all commands and `Predictor` have this order of precedence.

    1. MODEL.WEIGHTS if `opts` name it; 2. the last checkpoint in OUTPUT_DIR, which is the run's
    folder after `load_run_cfg`, unless `opts` name another; 3. the last one in the run's folder;
    in both folders rather that of the best evaluation (TEST.BEST_METRIC), if there is one;
    4. MODEL.WEIGHTS of the config, which the training began with. "" if there are none and the
    model reads its weights itself (`MetaArchitecture.loads_own_weights`).

    Args:
        cfg: its OUTPUT_DIR and MODEL.WEIGHTS are read.
        opts: the KEY VALUE pairs that were given with it.
        path: the YAML file or the run's folder that the config was read from.

    Raises:
        ConfigError: there are none.
    """
    if "MODEL.WEIGHTS" not in opts[::2]:
        run = path if os.path.isdir(path) or not path else os.path.dirname(os.path.abspath(path))
        for folder in (cfg.OUTPUT_DIR, run):
            if _has_checkpoint(folder):
                return best_checkpoint(folder) or _checkpoints_in(folder).get_checkpoint_file()
    if not cfg.MODEL.WEIGHTS and not has_own_weights(cfg):
        raise ConfigError(
            f"no weights to predict with: {quoted(cfg.OUTPUT_DIR)} has no checkpoint and"
            " MODEL.WEIGHTS is empty. Train first, or name a checkpoint: --weights FILE on a"
            " command line, weights=FILE in Python"
        )
    return cfg.MODEL.WEIGHTS


def _has_checkpoint(folder: str) -> bool:
    if not folder or not os.path.isdir(folder):
        return False
    return bool(best_checkpoint(folder)) or _checkpoints_in(folder).has_checkpoint()


def _checkpoints_in(folder: str) -> Checkpointer:
    return Checkpointer(torch.nn.Identity(), folder, save_to_disk=False)
