"""Save checkpoints atomically, load weights of any origin, report weights that do not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _strip_prefix_if_present
from torch import nn

from panoptic_ext.atomic import remove_leftovers, write_atomic
from panoptic_ext.engine.checkpoint.backbone_input import BackboneInput
from panoptic_ext.engine.checkpoint.backbone_names import (
    add_backbone_prefix,
    split_heuristics,
)
from panoptic_ext.engine.checkpoint.fetch_weights import fetch_weights
from panoptic_ext.engine.checkpoint.files import (
    TAG,
    files_of_best,
    periodic_checkpoints,
    set_aside,
    training_checkpoints,
)
from panoptic_ext.engine.checkpoint.load_report import LoadReport, report_load
from panoptic_ext.engine.checkpoint.parts import PartError
from panoptic_ext.engine.checkpoint.weight_files import read_weight_file, weights_in
from panoptic_ext.errors import CheckpointError, PanopticExtError
from panoptic_ext.modeling.meta_arch.base import AdaptsStateDict, TakesBaseWeights
from panoptic_ext.regular_files import CHECKPOINT, check_regular_file

__all__ = ["Checkpointer"]

logger = logging.getLogger(__name__)

# Never reported: only a BatchNorm without momentum reads it; old files and frozen norms lack it.
_COUNTER = "num_batches_tracked"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with atomic writing, safe reading and a load report.

    It reads everything DetectionCheckpointer reads: torch files, model zoo pickles, pycls files,
    `detectron2://` and http(s) addresses; also safetensors, and folders of `save_pretrained`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_pickle: bool = False,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: the model, wrapped in DistributedDataParallel or not.
            save_dir: folder of the checkpoints; "" for reading only.
            save_to_disk: None writes on the main process only.
            allow_pickle: also read files that could run code (MODEL.ALLOW_PICKLE).
            checkpointables: objects with state_dict and load_state_dict, by key.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_pickle = allow_pickle

    def save(
        self, name: str, *, weights: dict[str, torch.Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write `<name>.pth` under a temporary name, rename it, then tag it as the last one.

        Args:
            name: of the file.
            weights: the "model" of the file; None takes the model's state dict.
            kwargs: what else the file holds, by key.

        Raises:
            CheckpointError: the file could not be written; the ones before it are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict() if weights is None else weights}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        self._write(name, data, tag=True)

    def save_weights(self, name: str, weights: dict[str, torch.Tensor], **kwargs: Any) -> None:
        """As `save`, for weights to predict with, from which no run is resumed: they get no tag."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": weights, **kwargs}, tag=False)

    def _write(self, name: str, data: dict[str, Any], *, tag: bool) -> None:
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            write_atomic(path, lambda stream: torch.save(data, stream))
            if tag:
                # Afterwards: after a kill in between, the tag still names a whole checkpoint.
                self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path} could not be written: {error}. Earlier checkpoints are "
                "untouched; free space or mend the folder, then go on with --resume"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in the file `last_checkpoint`, atomically."""
        content = last_filename_basename.encode()
        write_atomic(os.path.join(self.save_dir, TAG), lambda stream: stream.write(content))

    def prune(self, keep: int) -> None:
        """Remove all but the `keep` newest periodic checkpoints (by iteration) of `save_dir`."""
        if not self.save_to_disk:
            return
        for path in periodic_checkpoints(self.save_dir)[:-keep]:
            os.remove(path)

    def has_checkpoint(self) -> bool:
        """Whether a run in `save_dir` left a checkpoint, tagged or not."""
        return bool(self._candidates())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from: the tagged one, else the newest, else ""."""
        candidates = self._candidates()
        return candidates[0] if candidates else ""

    def set_aside(self) -> str:
        """Move the checkpoints of an earlier run, and their tag, into a new folder beside them.

        A run that starts anew calls this. Otherwise --resume would continue the earlier run until
        the new one has written its first checkpoint. All workers must call it, after they have read
        the checkpoints that they need.

        Returns:
            The folder on the worker that moved them, else "".
        """
        comm.synchronize()
        folder = ""
        if self.save_to_disk and (self.has_checkpoint() or files_of_best(self.save_dir)):
            folder = set_aside(self.save_dir, self._candidates())
        comm.synchronize()
        return folder

    def resume(self, *, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Load the last readable checkpoint of `save_dir`: model and all checkpointables.

        A missing or damaged file is skipped with a warning, and the newest readable one is taken.
        The main process chooses for all workers.

        Args:
            check: called with the checkpoint after the model and before the checkpointables are
                loaded; it may raise PartError.

        Returns:
            The rest of the checkpoint, which includes `iteration`.

        Raises:
            CheckpointError: no checkpoint can be read, it does not fit this model, or one of its
                parts cannot be used.
        """
        if self.save_to_disk:
            remove_leftovers(self.save_dir)
        return self._load_on_all(self._read_last, strict=True, checkpointables=None, check=check)

    def load(
        self,
        path: str,
        checkpointables: list[str] | None = None,
        *,
        strict: bool = False,
        edit: Callable[[str, dict[str, Any], nn.Module], None] | None = None,
    ) -> dict[str, Any]:
        """Load weights (and checkpointables) from a file or address.

        Args:
            path: file, folder of `save_pretrained`, http(s) or `detectron2://` address; "" loads
                nothing.
            checkpointables: names to load; None for all that are in the file.
            strict: every parameter of the model must be found with its shape, as in evaluation.
            edit: called with the file, its content (names as the model's) and the model, before the
                weights are loaded; it may change them.

        Returns:
            The rest of the file's content.

        Raises:
            CheckpointError: the file is missing, unreadable or unsafe, or does not fit the model.
            DownloadError: the file of an address cannot be downloaded.
        """
        if strict:
            self.check_there(path)
        if not path:
            self.logger.info("No checkpoint found. Initializing model from scratch")
            return {}
        self.logger.info("Loading from %s ...", path)
        address, heuristics = split_heuristics(path)
        return self._load_on_all(
            lambda: self._read(address),
            strict=strict,
            checkpointables=checkpointables,
            heuristics=heuristics,
            edit=edit,
        )

    @staticmethod
    def check_there(path: str) -> None:
        """Raise CheckpointError if `load` would find no file; an address is not fetched."""
        if not path:
            raise CheckpointError(
                "no weights to evaluate: MODEL.WEIGHTS is empty. Give MODEL.WEIGHTS FILE, or "
                "--resume to take the last checkpoint of OUTPUT_DIR"
            )
        local = os.path.expanduser(split_heuristics(path)[0])
        if not urlparse(local).scheme:
            check_regular_file(weights_in(local), CHECKPOINT, error=CheckpointError)

    def _load_on_all(
        self,
        read: Callable[[], tuple[str, dict[str, Any]]],
        *,
        strict: bool,
        checkpointables: list[str] | None,
        heuristics: bool = False,
        check: Callable[[dict[str, Any]], None] | None = None,
        edit: Callable[[str, dict[str, Any], nn.Module], None] | None = None,
    ) -> dict[str, Any]:
        path, checkpoint = self._read_for_all(read)
        if heuristics:
            checkpoint["matching_heuristics"] = True
        self._add_base(path, checkpoint["model"])
        self._prepare_names(path, checkpoint)
        if edit is not None:
            edit(path, checkpoint, self.model)
        incompatible = self._load_model(checkpoint)
        self._report(path, incompatible, strict, BackboneInput.of_checkpoint(checkpoint))
        with self._explained_part_errors(path):
            if check is not None:
                check(checkpoint)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                with self._explained_part_errors(path):
                    self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    @contextmanager
    def _explained_part_errors(self, path: str) -> Iterator[None]:
        """Turn a PartError into a CheckpointError with the file and the ways to go on."""
        try:
            yield
        except PartError as error:
            others = [c for c in self._candidates() if c != path]
            ways = [error.way_out] if error.way_out else []
            if error.way_out is None and others:
                older = os.path.basename(others[0])
                ways = [f"move this file away, and --resume goes on from {older}"]
            ways.append(f"start anew from its weights, without --resume: MODEL.WEIGHTS {path}")
            raise CheckpointError(
                f"cannot resume from {path}: {error}. To go on, {', or '.join(ways)}"
            ) from error

    def _read_last(self) -> tuple[str, dict[str, Any]]:
        problems = []
        for path in self._candidates():
            try:
                local, checkpoint = self._read(path)
            except CheckpointError as error:
                self.logger.warning("Skipped: %s", error)
                problems.append(str(error))
                continue
            if problems:
                self.logger.warning("Resuming from %s, the newest readable checkpoint", path)
            return local, checkpoint
        raise CheckpointError(
            f"no checkpoint in {self.save_dir} can be read: {'; '.join(problems) or 'none found'}. "
            "Start again without --resume"
        )

    def _candidates(self) -> list[str]:
        return training_checkpoints(self.save_dir, self.logger)

    def _read(self, path: str) -> tuple[str, dict[str, Any]]:
        """File or address -> (local file, content)."""
        local = os.path.expanduser(path)
        if not os.path.exists(local) and urlparse(path).scheme:
            local = fetch_weights(path, self.path_manager)
        local = weights_in(local)
        return local, self._load_file(local)

    def _read_for_all(
        self, read: Callable[[], tuple[str, dict[str, Any]]]
    ) -> tuple[str, dict[str, Any]]:
        """Read on every worker the file that the main process chooses.

        If a worker (on another machine) does not have that file, the main process sends its content
        to all.
        """
        if comm.get_world_size() == 1:
            return read()
        choice: list[Any] = [None, None]
        checkpoint: dict[str, Any] | None = None
        failure: PanopticExtError | None = None
        if comm.is_main_process():
            try:
                choice[0], checkpoint = read()
            except PanopticExtError as error:
                # Broadcast as well: if the main process raised alone, the others would wait.
                failure, choice[1] = error, str(error)
        dist.broadcast_object_list(choice, src=0, device=_comm_device())
        path, problem = choice
        if problem is not None:
            raise failure or CheckpointError(problem)
        if not all(comm.all_gather(os.path.isfile(path))):
            content: list[Any] = [checkpoint]
            dist.broadcast_object_list(content, src=0, device=_comm_device())
            return path, content[0]
        return path, self._load_file(path) if checkpoint is None else checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_weight_file(filename, allow_pickle=self.allow_pickle)

    def _add_base(self, path: str, weights: dict[str, Any]) -> None:
        """Complete weights that need others, in place; see `TakesBaseWeights`."""
        if not isinstance(self.model, TakesBaseWeights):
            return
        wanted = self.model.base_weights(weights)
        if wanted is None:
            return
        self.logger.info("%s %s %s: %s", path, wanted.relation, wanted.name, wanted.address)
        try:
            _, base = self._read_for_all(lambda: self._read(wanted.address))
        except PanopticExtError as error:
            reason = str(error).replace("MODEL.WEIGHTS", wanted.key)
            mend = "" if wanted.key in reason else f". {wanted.key} names its file or address"
            raise CheckpointError(
                f"{path} {wanted.relation} {wanted.name}, which cannot be had. {reason}{mend}"
            ) from error
        self.model.add_base_weights(weights, base["model"])

    def _prepare_names(self, path: str, checkpoint: dict[str, Any]) -> None:
        """Rename the weights of the file, in place, as the model names them."""
        weights = checkpoint["model"]
        _strip_prefix_if_present(weights, "module.")
        for name in [n for n, v in weights.items() if not hasattr(v, "shape")]:
            self.logger.warning("Ignoring %s of the checkpoint: no tensor", name)
            del weights[name]
        if BackboneInput.of_checkpoint(checkpoint) is not None:
            # The heuristics are for Detectron2's own checkpointer, which adds no prefix.
            checkpoint.pop("matching_heuristics", None)
        if not checkpoint.get("matching_heuristics"):
            weights = add_backbone_prefix(path, weights, self.model.state_dict())
            checkpoint["model"] = weights
        # load_state_dict's own hooks run after names and shapes have been compared, so renaming
        # there would come too late.
        for name, module in self.model.named_modules():
            if isinstance(module, AdaptsStateDict):
                module.adapt_state_dict(weights, f"{name}." if name else "")

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            keys[:] = [k for k in keys if not k.endswith(_COUNTER)]
        return incompatible

    def _report(
        self, path: str, incompatible: Any, strict: bool, expected: BackboneInput | None
    ) -> None:
        """Log how much of the model was loaded; raise if that is not enough."""
        shapes = {k: (in_file, in_model) for k, in_file, in_model in incompatible.incorrect_shapes}
        missing = [k for k in incompatible.missing_keys if k not in shapes]
        report = LoadReport(
            path,
            names=[k for k in self.model.state_dict() if not k.endswith(_COUNTER)],
            missing=missing,
            shapes=shapes,
            unexpected=list(incompatible.unexpected_keys),
            why=self.model.why_missing(missing) if hasattr(self.model, "why_missing") else "",
            mend=expected.mend() if expected else "",
        )
        report_load(report, self.logger, strict=strict)
        difference = expected.difference(self.model) if expected else ""
        if difference:
            self.logger.warning("%s: %s", path, difference)


def _comm_device() -> torch.device:
    """The device from which the process group sends objects: nccl sends from GPUs only."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
