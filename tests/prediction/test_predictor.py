"""Predictor in Python: every kind of image it takes, what it refuses, and lists of images."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext.data.resizing import ResizeShortestEdge, ResizeSide
from panoptic_ext.engine.precision import Precision
from panoptic_ext.errors import (
    ConfigError,
    DatasetError,
    ImageError,
    MemoryNeededError,
    PanopticExtError,
)
from panoptic_ext.prediction.image_arrays import as_bgr_image
from panoptic_ext.prediction.predictor import Predictor

BGR = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
RGB = np.ascontiguousarray(BGR[:, :, ::-1])
GREY = np.repeat(BGR[:, :, :1], 3, axis=2)


class FakeModel(torch.nn.Module):
    """Marks the pixels above the image's mean; records its batches."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self.batches: list[list[tuple[int, ...]]] = []
        self.most = most

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise MemoryError
        self.batches.append([tuple(x["image"].shape) for x in inputs])
        return [self.one(x["image"]) for x in inputs]

    def one(self, image):
        bright = (image.sum(0) > image.sum(0).mean()).int() + 1
        segments = [{"id": 1, "isthing": False, "category_id": 0}]
        return {"panoptic_seg": (bright, segments), "image": image}


def predictor(model=None, input_format="RGB"):
    """A Predictor without config, weights or resizing."""
    fake = object.__new__(Predictor)
    fake.model, fake.input_format = model or FakeModel(), input_format
    fake.precision = Precision("cpu", None)
    fake.aug = SimpleNamespace(
        get_transform=lambda image: SimpleNamespace(apply_image=lambda pixels: pixels.copy())
    )
    return fake


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (BGR, BGR),
        (BGR[:, :, 0], GREY),
        (BGR[:, :, :1], GREY),
        (np.dstack([BGR, BGR[:, :, 0]]), BGR),  # the alpha is left out
        (BGR[::-1, ::-1], BGR[::-1, ::-1]),
        (BGR.astype(np.int64), BGR),
        (BGR.astype(np.float64), BGR),
        (np.zeros((2, 2, 3)), np.zeros((2, 2, 3))),
        (torch.from_numpy(BGR), BGR),
        (torch.from_numpy(BGR)[:, :, 0].float().requires_grad_(), GREY),
        (torch.from_numpy(BGR).bfloat16(), torch.from_numpy(BGR).bfloat16().float().numpy()),
        (Image.fromarray(RGB), BGR),
        (Image.fromarray(RGB).convert("RGBA"), BGR),
        (Image.fromarray(BGR[:, :, 0]), GREY),
        (Image.fromarray(BGR[:, :, 0]).convert("LA"), GREY),
        (Image.fromarray(BGR[:, :, 0] > 99), np.repeat((BGR[:, :, :1] > 99) * 255, 3, axis=2)),
    ],
)
def test_images_of_any_kind_are_taken(image, expected):
    taken = as_bgr_image(image)
    assert taken.shape == expected.shape and taken.flags.c_contiguous
    assert taken.dtype in (np.uint8, np.float32) and (taken == expected).all()


def test_pil_images_and_paths_are_turned_upright_by_their_exif_tag(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=exif)
    turned = np.rot90(BGR, -1)
    for image in (path, str(path), Image.open(path)):
        assert (as_bgr_image(image) == turned).all()
    for mode in ("P", "CMYK", "YCbCr", "HSV"):
        assert as_bgr_image(Image.fromarray(RGB).convert(mode)).shape == BGR.shape


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"the image is None \(cv2.imread"),
        (3, "of the type int"),
        (b"abc", "of the type bytes"),
        ({"image": BGR}, "of the type dict"),
        (BGR[:0], r"no pixel: its shape is \(0, 5, 3\)"),
        (torch.zeros(3, 0, 3), r"no pixel: its shape is \(3, 0, 3\)"),
        (Image.new("RGB", (0, 4)), r"no pixel: its shape is \(4, 0, 3\)"),
        (BGR.transpose(2, 0, 1), r"\(3, 7, 5\).*transpose\(1, 2, 0\).*in BGR order"),
        (torch.zeros(3, 7, 5), r"permute\(1, 2, 0\)"),
        (BGR[None], r"\(1, 7, 5, 3\).*Give a list"),
        (BGR[:, :, :2], r"\(7, 5, 2\); expected a path"),
        (BGR[0, 0], r"shape \(3,\)"),
        (np.array([["a"]]), "values of the type <U1"),
        (BGR > 99, "values of the type bool"),
        (BGR.astype(np.complex64), "values of the type complex64"),
        (BGR.astype(np.uint16) * 257, "16 bits a channel.*at most"),
        (Image.fromarray(BGR[:, :, 0].astype(np.uint16)), "integers of more than 8 bits"),
        (Image.fromarray(BGR[:, :, 0].astype(np.float32)), "floating point"),
        (BGR / 255, r"floating point values from 0.* to 0.*multiply it by 255"),
        (torch.rand(4, 4, 3), "multiply it by 255"),
        (BGR - 300.0, r"values from -\d+ to -\d+, expected 0 to 255"),
        (BGR.astype(np.int32) + 200, "values from .*the model normalises"),
        (np.where(BGR > 200, np.nan, BGR), r"has \d+ values that are NaN or infinite"),
        (np.full((2, 2), np.inf), "has 4 values that are NaN"),
    ],
)
def test_an_image_that_is_refused_gets_a_one_line_error(image, message):
    with pytest.raises(ImageError, match=message) as caught:
        as_bgr_image(image)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["uint8", "int16", "uint16", "float32", "float64", "bool", "U2", "object"]),
    st.sampled_from([-1, 0, 1, 255, 256]),
    st.booleans(),
)
def test_any_array_is_predicted_or_raises_an_image_error(shape, kind, value, is_tensor):
    try:
        array = np.full(shape, value).astype(kind)
    except OverflowError:  # numpy 2 refuses -1 as uint8
        return
    if is_tensor and array.dtype.kind in "if":
        array = torch.from_numpy(array)
    try:
        image = as_bgr_image(array)
    except PanopticExtError:
        return
    assert image.ndim == 3 and image.shape[2] == 3 and image.size
    assert image.min() >= 0 and image.max() <= 255


@pytest.mark.parametrize("input_format", ["RGB", "BGR"])
def test_the_model_gets_the_channel_order_of_input_format(input_format):
    output = predictor(input_format=input_format)(BGR)
    expected = RGB if input_format == "RGB" else BGR
    assert (output["image"].permute(1, 2, 0).numpy() == expected).all()
    assert output["image"].dtype == torch.float32 and output["panoptic_seg"][0].shape == (7, 5)


def test_area_and_box_are_added_to_segments_of_other_packages_models():
    """Detectron2's own merging gives area to stuff alone."""
    panoptic_seg, (segment,) = predictor()(BGR)["panoptic_seg"]
    assert segment["area"] == int((panoptic_seg == 1).sum()) and len(segment["bbox"]) == 4


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_list_gives_the_outputs_of_single_images_in_batches_of_one_size(batch_size, kind):
    wide, images = np.repeat(BGR, 2, axis=1), [BGR, BGR[::-1], GREY, BGR]
    images = [*images, wide, wide[:, ::-1], BGR]
    model = FakeModel()
    outputs = predictor(model)(kind(images), batch_size=batch_size)
    assert isinstance(outputs, list) and len(outputs) == len(images)
    for output, image in zip(outputs, images, strict=True):
        alone = predictor()(image)
        assert torch.equal(output["panoptic_seg"][0], alone["panoptic_seg"][0])
        assert output["panoptic_seg"][1] == alone["panoptic_seg"][1]
    assert all(len(set(batch)) == 1 and len(batch) <= batch_size for batch in model.batches)
    expected = {1: 7, 2: 4, 3: 4, 10: 3}
    assert len(model.batches) == expected[batch_size]


def test_an_empty_list_and_the_number_of_a_bad_image_in_a_list():
    assert predictor()([]) == []
    with pytest.raises(ImageError, match="image 1 of the list is None"):
        predictor()([BGR, None])
    with pytest.raises(ImageError, match="image 0 of the list is of the type list"):
        predictor()([[BGR]])
    with pytest.raises(DatasetError, match=r"nowhere\.jpg"):
        predictor()(["nowhere.jpg"])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        predictor()([BGR], batch_size=0)


def test_outputs_are_yielded_batch_by_batch():
    model = FakeModel()
    outputs = predictor(model).predict_each((BGR for _ in range(5)), batch_size=2)
    next(outputs)
    assert len(model.batches) == 1


def test_images_of_a_batch_that_does_not_fit_into_memory_are_predicted_alone():
    model = FakeModel(most=1)
    assert len(predictor(model)([BGR] * 3, batch_size=3)) == 3 and len(model.batches) == 3
    with pytest.raises(MemoryNeededError, match="7 x 5"):
        predictor(FakeModel(most=0))(BGR)


def test_the_memory_of_a_failed_batch_is_freed_before_its_images_are_predicted_alone():
    """The memory that the failed batch holds is what the smaller ones need."""

    class Buffer:
        pass

    class Wasteful(FakeModel):
        def forward(self, inputs):
            buffer = Buffer()
            if len(inputs) == 1:
                assert self.buffer_of_batch() is None
            else:
                self.buffer_of_batch = weakref.ref(buffer)
            return super().forward(inputs)

    assert len(predictor(Wasteful(most=1))([BGR] * 2, batch_size=2)) == 2


def test_a_thin_image_is_resized_to_at_least_a_pixel():
    thin = predictor()
    thin.aug = ResizeShortestEdge([8, 8], 16)
    output = thin([np.zeros((1, 900, 3), np.uint8), np.zeros((900, 1, 3), np.uint8)])
    assert [min(o["image"].shape[1:]) for o in output] == [1, 1]


def test_windows_are_cut_from_the_resized_image():
    class Scores(FakeModel):
        def one(self, image):
            return {"sem_seg": image}

    model = Scores()
    windowed = predictor(model)
    windowed.aug, windowed.window_side = ResizeSide(8, longest=False), 8
    outputs = windowed([np.zeros((4, 9, 3), np.uint8)] * 2, batch_size=2)
    assert [o["sem_seg"].shape for o in outputs] == [(3, 4, 9)] * 2
    assert model.batches == [[(3, 8, 8)] * 4, [(3, 8, 8)] * 2]
    with pytest.raises(ConfigError, match=r"SEMANTIC_WINDOWS True .* FakeModel gives image, pano"):
        windowed.model = FakeModel()
        windowed(BGR)
