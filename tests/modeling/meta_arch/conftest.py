"""Metadata of the tiny Mask2Former, and one of it for each module."""

from __future__ import annotations

import pytest
from detectron2.data import MetadataCatalog

from tests.tiny.mask_former import NAME, build
from tests.tiny.model_inputs import fake_metadata


@pytest.fixture(scope="module", autouse=True)
def mask_former_metadata():
    fake_metadata(NAME)
    yield
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model():
    return build()
