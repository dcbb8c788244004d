"""Metadata of the tiny Mask2Former, and one of it for each module."""

from __future__ import annotations

import pytest
from detectron2.data import MetadataCatalog

from tests.fakes import fake_metadata
from tests.modeling.meta_arch.tiny_mask_former import NAME, build


@pytest.fixture(scope="module", autouse=True)
def mask_former_metadata():
    fake_metadata(NAME)
    yield
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model():
    return build()
