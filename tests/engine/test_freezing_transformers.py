"""MODEL.BACKBONE.FREEZE with the models of transformers."""

from __future__ import annotations

import re

import pytest

from tests.engine.test_freezing import built, changed, frozen_names
from tests.tiny.mask_former import NAME
from tests.tiny.model_inputs import fake_metadata
from tests.tiny.transformers_models import tiny_architecture
from tests.tiny.transformers_predictor import skip_absent

# Where the backbone's names begin, and those of stem and first stage.
OF_TRANSFORMERS = {
    "detr": ("network.detr.model.backbone.", r"embedder\.|encoder\.stages\.0\."),
    "eomt": ("network.", r"^embeddings\.|^layers\.0\."),
    "mask2former": ("network.model.pixel_level_module.encoder.", r"embedder\.|stages\.0\."),
    "oneformer": ("network.model.pixel_level_module.encoder.", r"embeddings\.|layers\.0\."),
}


@pytest.fixture(autouse=True)
def classes():
    fake_metadata(NAME)


@pytest.mark.parametrize("family", skip_absent(*OF_TRANSFORMERS))
def test_the_backbones_of_transformers(family):
    keys = {
        "MODEL.META_ARCHITECTURE": "TransformersPanoptic",
        "MODEL.TRANSFORMERS.NAME_OR_PATH": "tiny",
        "MODEL.TRANSFORMERS.PRETRAINED": False,
        "MODEL.TRANSFORMERS.ARCHITECTURE": tiny_architecture(family),
        "INPUT.MIN_SIZE_TEST": 0,
    }
    prefix, first = OF_TRANSFORMERS[family]
    before = frozen_names(built(**keys)[0])  # transformers itself freezes parts of DETR
    model, cfg = built(**keys, **{"MODEL.BACKBONE.FREEZE": 2})
    names = {n for n, _ in model.named_parameters() if n.startswith(model.backbone_prefixes)}
    expected = {n for n in names if re.search(first, n.removeprefix(prefix))}
    assert len(expected) > 1 and expected < names
    assert frozen_names(model) == expected | before
    assert not (found := changed(model, cfg)) & frozen_names(model)
    assert found & names - expected or names <= before | expected
    assert frozen_names(built(**keys, **{"MODEL.BACKBONE.FREEZE": "all"})[0]) == names | before
