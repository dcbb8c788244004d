"""A cache that notices when a parameter changes."""

import pytest
import torch
from torch import nn

from panoptic_ext.modeling.layers.tensor_cache import TensorCache


class Doubled:
    """Twice a parameter, and how often that was computed."""

    def __init__(self):
        self.cache = TensorCache(most=2)
        self.parameter = nn.Parameter(torch.ones(3))
        self.calls = 0

    def __call__(self, key=0):
        return self.cache.get(key, [self.parameter], self.compute)

    def compute(self):
        self.calls += 1
        return 2 * self.parameter


def test_a_result_is_computed_once_for_each_key():
    doubled = Doubled()
    with torch.no_grad():
        first = doubled(0)
        assert doubled(0) is first and doubled(1) is not first and doubled.calls == 2
        doubled(0)
        doubled(2)  # drops 1, which was used before 0
        doubled(0)
        assert doubled.calls == 3
        doubled(1)
        assert doubled.calls == 4


@pytest.mark.parametrize("how", ["in place", "load", "replaced", "cleared"])
def test_a_change_of_the_parameter_is_noticed(how):
    doubled = Doubled()
    with torch.no_grad():
        doubled()
        if how == "in place":
            doubled.parameter.add_(1)
        elif how == "load":
            doubled.parameter.copy_(torch.full((3,), 2.0))
        elif how == "replaced":
            doubled.parameter = nn.Parameter(torch.full((3,), 2.0))
        else:
            doubled.parameter.data = torch.full((3,), 2.0)
            doubled.cache.clear()
        torch.testing.assert_close(doubled(), torch.full((3,), 4.0))


def test_gradients_flow_in_training_and_need_no_cache_for_frozen_parameters():
    doubled = Doubled()
    doubled().sum().backward()
    doubled()
    assert doubled.calls == 2 and doubled.parameter.grad.tolist() == [2.0, 2.0, 2.0]
    doubled.parameter.requires_grad_(False)
    assert doubled() is doubled() and doubled.calls == 3


def test_results_of_inference_mode_serve_in_training():
    doubled = Doubled()
    doubled.parameter.requires_grad_(False)
    with torch.inference_mode():
        kept = doubled()
    weight = torch.ones(3, requires_grad=True)
    (weight * kept).sum().backward()
    assert doubled() is kept and weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_tensors_without_versions_are_not_kept():
    doubled = Doubled()
    with torch.inference_mode():
        doubled.parameter = torch.ones(3)
        doubled()
        doubled.parameter.add_(1)
        assert doubled().tolist() == [4.0, 4.0, 4.0]
