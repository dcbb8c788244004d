"""Write a training's losses, results, config and pictures into runs of wandb and mlflow.

A tracker that fails, for example without a network, is reported and left out; the training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from panoptic_ext.atomic import write_atomic
from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.evaluation.build import result_folder
from panoptic_ext.optional_packages import import_optional

__all__ = ["MlflowWriter", "Tracker", "WandbWriter", "mlflow_names", "wandb_options"]

logger = logging.getLogger(__name__)

_IDS_FILE = "trackers.json"  # in OUTPUT_DIR: name of the tracker -> id of its run
_NUM_FAILURES = 3  # in a row, after which a tracker is left out
_MAX_PARAMETER = 500  # characters of a value; older servers of MLflow take no more
_MAX_METRICS = 1000  # in a request to MLflow
_MAX_NAME = 250  # characters of a metric of MLflow
_WINDOW = 20  # iterations over which losses are averaged, as in metrics.json


class Tracker(EventWriter, ABC):
    """Base of writers into a run that another program keeps.

    Subclasses say how a run is begun, written and ended.

    Attributes:
        name: of the tracker, as in LOGGERS.
    """

    name = ""

    def __init__(self, cfg: CfgNode, start_iter: int) -> None:
        """
        Args:
            cfg: the config of the run.
            start_iter: 0 begins a new run; otherwise the one that OUTPUT_DIR names goes on.
        """
        self._cfg = cfg
        self._last_written = start_iter - 1
        self._failures = 0
        self._pictures = dict(self._found_pictures())
        known = _read_ids(cfg.OUTPUT_DIR).get(self.name) if start_iter else None
        self._is_open = self._guarded(self._begin, known) is not None

    def write(self) -> None:
        """Write the scalars that are newer than those written before, and new pictures."""
        if not self._is_open:
            return
        storage = get_event_storage()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_written:
                rows[iteration][name] = value
        for iteration, values in sorted(rows.items()):
            self._guarded(self._log, iteration, values)
        self._last_written = max(rows, default=self._last_written)
        for path, modified in self._found_pictures():
            if self._pictures.get(path) != modified:
                self._pictures[path] = modified
                self._guarded(self._log_picture, _evaluated_iteration(storage), path)

    def close(self) -> None:
        """End the run; a resumed training opens it again."""
        if self._is_open:
            self._guarded(self._end)
            self._is_open = False

    @abstractmethod
    def _begin(self, run_id: str | None) -> str:
        """Begin a run, or go on with that of an id; returns its id."""

    @abstractmethod
    def _log(self, iteration: int, values: dict[str, float]) -> None:
        """Write the values of an iteration."""

    @abstractmethod
    def _log_picture(self, iteration: int, path: str) -> None:
        """Write a picture of the evaluation after an iteration."""

    @abstractmethod
    def _end(self) -> None:
        """End the run."""

    def _keep_id(self, run_id: str) -> None:
        content = json.dumps({**_read_ids(self._cfg.OUTPUT_DIR), self.name: run_id}).encode()
        path = os.path.join(self._cfg.OUTPUT_DIR, _IDS_FILE)
        write_atomic(path, lambda stream: stream.write(content))

    def _found_pictures(self) -> Iterator[tuple[str, int]]:
        """Contact sheets that are there, with the time of their last change."""
        for dataset in self._cfg.DATASETS.TEST:
            path = os.path.join(result_folder(self._cfg, dataset), "contact_sheet.png")
            if os.path.exists(path):
                yield path, os.stat(path).st_mtime_ns

    def _guarded(self, action: Any, *values: Any) -> Any:
        """The result of an action; None after an error, which is logged, and after many of them."""
        if self._failures >= _NUM_FAILURES:
            return None
        try:
            result = action(*values)
        # Whatever the tracker, its server or the network do, the training goes on.
        except Exception as error:
            self._failures += 1
            logger.warning(
                "%s could not be written: %s: %s", self.name, type(error).__name__, _line_of(error)
            )
            if self._failures >= _NUM_FAILURES:
                logger.warning("%s is left out from now on", self.name)
            return None
        self._failures = 0
        return result


class WandbWriter(Tracker):
    """Writes into a run of Weights & Biases; see the keys WANDB."""

    name = "wandb"

    def __init__(self, cfg: CfgNode, start_iter: int) -> None:
        self._wandb: Any = import_optional("wandb", "wandb", "LOGGERS wandb")
        self._run: Any = None
        super().__init__(cfg, start_iter)

    def _begin(self, run_id: str | None) -> str:
        run_id = run_id or uuid.uuid4().hex[:8]
        try:
            self._open(run_id, self._cfg.WANDB.MODE or None)
        # wandb has errors of several kinds for no account, no network and no answer.
        except Exception as error:
            if self._cfg.WANDB.MODE == "offline":
                raise
            logger.warning(
                "wandb cannot go online (%s): the run is offline, and `wandb sync` takes it there "
                "later. WANDB.MODE offline silences this",
                _line_of(error),
            )
            self._open(run_id, "offline")
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        self._keep_id(run_id)
        logger.info("wandb: run %s in %s", run_id, self._run.url or self._run.dir)
        return run_id

    def _open(self, run_id: str, mode: str | None) -> None:
        options = {**wandb_options(self._cfg), "id": run_id, "mode": mode}
        self._run = self._wandb.init(resume="allow", allow_val_change=True, **options)

    def _log(self, iteration: int, values: dict[str, float]) -> None:
        # By an axis of our own: wandb's steps cannot go back, and a resumed run may train again
        # what came after its checkpoint.
        self._run.log({**values, "iteration": iteration})

    def _log_picture(self, iteration: int, path: str) -> None:
        dataset = os.path.basename(os.path.dirname(path))
        picture = self._wandb.Image(path)
        self._run.log({f"contact_sheet/{dataset}": picture, "iteration": iteration})

    def _end(self) -> None:
        self._run.finish()


class MlflowWriter(Tracker):
    """Writes into a run of MLflow; see the keys MLFLOW."""

    name = "mlflow"

    def __init__(self, cfg: CfgNode, start_iter: int) -> None:
        # The next two are read when mlflow is imported or used. A server that does not answer is
        # asked a few times in seconds, not for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._mlflow: Any = import_optional("mlflow", "mlflow", "LOGGERS mlflow")
        self._client: Any = None
        self._run_id = ""
        super().__init__(cfg, start_iter)

    def _begin(self, run_id: str | None) -> str:
        uri, experiment, name = mlflow_names(self._cfg)
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        if run_id:
            self._run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._run_id = self._new_run(experiment, name)
            self._keep_id(self._run_id)
        logger.info("mlflow: run %s at %s", self._run_id, uri)
        return self._run_id

    def _new_run(self, experiment: str, name: str) -> str:
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        run = self._client.create_run(number, run_name=name)
        entities = self._mlflow.entities
        parameters = [
            entities.Param(key, str(value)[:_MAX_PARAMETER])
            for key, value in changed_values(self._cfg).items()
        ]
        for i in range(0, len(parameters), 100):  # a request takes no more
            self._client.log_batch(run.info.run_id, params=parameters[i : i + 100])
        self._client.log_text(run.info.run_id, self._cfg.dump(), "config.yaml")
        return run.info.run_id

    def _log(self, iteration: int, values: dict[str, float]) -> None:
        now, entities = int(time.time() * 1000), self._mlflow.entities
        metrics = [
            entities.Metric(_name_for_mlflow(name), float(value), now, iteration)
            for name, value in values.items()
        ]
        for i in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + _MAX_METRICS])

    def _log_picture(self, iteration: int, path: str) -> None:
        dataset = os.path.basename(os.path.dirname(path))
        self._client.log_artifact(self._run_id, path, f"contact_sheets/{dataset}/{iteration}")

    def _end(self) -> None:
        self._client.set_terminated(self._run_id)


def wandb_options(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `wandb.init` that a config gives."""
    keys = cfg.WANDB
    return {
        "project": keys.PROJECT or None,
        "entity": keys.ENTITY or None,
        "name": keys.NAME or os.environ.get("WANDB_NAME") or _folder_name(cfg),
        "dir": cfg.OUTPUT_DIR,
        "config": yaml.safe_load(cfg.dump()),
    }


def mlflow_names(cfg: CfgNode) -> tuple[str, str, str]:
    """Address of the store, name of the experiment, name of the run."""
    keys = cfg.MLFLOW
    folder = Path(cfg.OUTPUT_DIR).absolute() / "mlruns"
    return (
        keys.TRACKING_URI or os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri(),
        keys.EXPERIMENT or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "panoptic_ext",
        keys.NAME or _folder_name(cfg),
    )


def _name_for_mlflow(name: str) -> str:
    """The name of a metric in characters that MLflow takes: classes may be called otherwise."""
    parts = re.sub(r"[^\w\-. /]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))[:_MAX_NAME]


def _folder_name(cfg: CfgNode) -> str:
    return os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))


def changed_values(cfg: CfgNode) -> dict[str, Any]:
    """The values of a config that differ from the defaults, by their full names."""
    default = get_cfg()
    add_panoptic_ext_config(default)
    before = dict(_flat(yaml.safe_load(default.dump()), ""))
    now = dict(_flat(yaml.safe_load(cfg.dump()), ""))
    return {key: value for key, value in now.items() if before.get(key, key) != value}


def _flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _evaluated_iteration(storage: EventStorage) -> int:
    """The iteration of the newest results."""
    latest = storage.latest().items()
    return max((at for name, (_, at) in latest if "panoptic_seg/" in name), default=storage.iter)


def _read_ids(folder: str) -> dict[str, str]:
    path = Path(folder) / _IDS_FILE
    try:
        ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):  # a run of its own is better than none
        ids = {}
    return ids if isinstance(ids, dict) else {}


def _line_of(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0][:300]
