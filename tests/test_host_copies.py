"""Copies to the device, on a pretended one: none makes the host wait."""

import numpy as np
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from panoptic_ext.engine.loader import _Loaded
from panoptic_ext.errors import DatasetError
from panoptic_ext.host_copies import to_device
from tests.pretended_cuda import CUDA, DeviceTensor, PretendedCuda
from tests.tiny.mask_former import mapped

CPU = torch.device("cpu")


def test_arrays_and_tensors_are_copied_without_a_wait():
    values = np.arange(6).reshape(2, 3).T
    with PretendedCuda() as device:
        copied = to_device(values, torch.device("cuda"))
        again = to_device(copied, CUDA)
        tensor = to_device(torch.ones(2), CUDA)
    assert not device.waits, device.report()
    assert again is copied and all(isinstance(x, DeviceTensor) for x in (copied, tensor))
    assert np.array_equal(copied.as_subclass(torch.Tensor).numpy(), values)
    with PretendedCuda() as device:
        torch.ones(2).to("cuda")
    assert sum(device.waits.values()) == 1


def test_on_a_cpu_a_tensor_is_returned_itself():
    tensor = torch.ones(2)
    assert to_device(tensor, CPU) is tensor
    assert torch.equal(to_device(np.ones(2, np.float32), CPU), tensor)


def test_batches_of_the_loader_keep_their_form_in_page_locked_memory():
    """torch's own recursion, which the loader's thread runs on CUDA."""
    sample, error = mapped(), DatasetError("unreadable")
    batch = [_Loaded(sample, ["a.png"], None), _Loaded(None, [], error)]
    with PretendedCuda() as device:
        first, second = pin_memory(batch)
        assert all(first.sample[name].is_pinned() for name in ("image", "panoptic_ids"))
        to_device(first.sample["image"], CUDA)
    assert not device.waits, device.report()
    assert first.sample.keys() == sample.keys() and first.skipped == ["a.png"]
    assert first.sample["segments"] is sample["segments"] and second.error is error
