"""MODEL.WEIGHTS as an address: http(s), Detectron2's schemes, handlers of other packages."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import HTTPURLHandler, PathHandler
from torch import nn

from panoptic_ext import transfer
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError, ConfigError, DownloadError
from tests.tiny.file_server import FileServer, free_port


@pytest.fixture
def weights() -> bytes:
    stream = io.BytesIO()
    torch.save({"model": {"weight": torch.full((2, 2), 3.0), "bias": torch.ones(2)}}, stream)
    return stream.getvalue()


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers that a test registers are forgotten after it."""
    monkeypatch.setattr(PathManager, "_path_handlers", PathManager._path_handlers.copy())


def loaded(address: str) -> float:
    """The first weight after the file of the address was loaded."""
    model = nn.Linear(2, 2)
    Checkpointer(model).load(address)
    return model.weight[0, 0].item()


def test_an_address_is_downloaded_into_the_cache(
    file_server: FileServer, weights: bytes, tmp_path: Path
) -> None:
    address = file_server.add("run/model_final.pth", weights, drops=[500])
    assert loaded(address) == 3 and loaded(address) == 3
    assert file_server.ranges("run/model_final.pth") == [None, "bytes=500-"]
    assert (tmp_path / "cache/run/model_final.pth").read_bytes() == weights


def test_a_file_that_detectron2_downloaded_is_used(
    file_server: FileServer, weights: bytes, tmp_path: Path
) -> None:
    address = file_server.add("run/model_final.pth", weights)
    PathManager.get_local_path(address)
    assert loaded(address) == 3 and len(file_server.requests) == 1


def test_failures_name_the_address_and_the_place(
    file_server: FileServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0,))
    for address, problem in (
        (f"{file_server.root}/no/w.pth", "404 Not Found"),
        (file_server.add_page("page/w.pth"), "HTML page"),
        (file_server.add("short/w.pth", weights, truncated_to=100), "100 of "),
        (f"http://127.0.0.1:{free_port()}/dead/w.pth", "refuses the connection"),
    ):
        with pytest.raises(DownloadError, match=problem) as caught:
            loaded(address)
        place = f"{tmp_path}/cache/{address.split('/', 3)[3]}"
        assert address in str(caught.value) and place in str(caught.value)


def test_the_right_file_is_taken_after_one_whose_name_has_another_hash(
    file_server: FileServer, weights: bytes, tmp_path: Path
) -> None:
    name = f"w-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    address = file_server.add(name, weights + b"damaged")
    with pytest.raises(CheckpointError, match="sha256 begins with"):
        loaded(address)
    file_server.add(name, weights)
    os.remove(tmp_path / "cache" / name)  # as the error says
    assert loaded(address) == 3


def test_schemes_of_detectron2_lead_to_their_addresses(
    file_server: FileServer, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{file_server.root}/d2/")
    monkeypatch.setattr(ModelCatalog, "S3_C2_DETECTRON_PREFIX", f"{file_server.root}/c2")
    file_server.add("d2/a/w.pth", weights, drops=[500])
    assert loaded("detectron2://a/w.pth") == 3 and len(file_server.ranges("d2/a/w.pth")) == 2
    with pytest.raises(DownloadError, match=r"/c2/ImageNetPretrained/MSRA/R-50.pkl .*404"):
        loaded("catalog://ImageNetPretrained/MSRA/R-50")
    with pytest.raises(CheckpointError, match=r"catalog://unknown cannot be fetched"):
        loaded("catalog://unknown")


@pytest.mark.usefixtures("handlers")
def test_other_handlers_keep_their_addresses_and_errors(
    file_server: FileServer, weights: bytes, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(weights)

    class House(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return ["house://"]

        def _get_local_path(self, path: str, **kwargs: object) -> str:
            if path == "house://model":
                return str(tmp_path / "w.pth")
            if path == "house://typo":
                raise ConfigError("unknown model 'typo'")
            raise OSError("the house is closed")

    class OneHost(HTTPURLHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return [f"{file_server.root}/private/"]

        def _get_local_path(self, path: str, **kwargs: object) -> str:
            return str(tmp_path / "w.pth")

    PathManager.register_handler(House())
    PathManager.register_handler(OneHost())
    assert loaded("house://model") == 3
    assert loaded(f"{file_server.root}/private/w.pth") == 3 and not file_server.requests
    with pytest.raises(ConfigError, match=r"^unknown model 'typo'$"):
        loaded("house://typo")
    with pytest.raises(CheckpointError, match=r"house://x cannot be fetched: the house is closed"):
        loaded("house://x")
