"""Copy-paste augmentation: ids, areas and pixels, against naive masks and by invariants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data import PanopticDatasetMapper
from panoptic_ext.data.augmentation import PadToSize
from panoptic_ext.data.copy_paste import CopyPaste, Scene, paste
from panoptic_ext.data.donors import Donors
from panoptic_ext.data.read_record import Labels
from panoptic_ext.data.resize_crop import LargeScaleJitter
from panoptic_ext.errors import ConfigError
from tests.tiny.mapper import mapper
from tests.tiny.panoptic_dataset import TinyDataset

CAR = 1  # contiguous id in the tiny data set
KINDS = ((0, False, 0), (1, True, 0), (2, True, 0), (2, True, 1))  # stuff, things, a crowd


def random_scene(rng: np.random.Generator, size: tuple[int, int], number: int) -> Scene:
    """Blocks of random segments and void; some segments have no pixel."""
    blocks = rng.integers(0, number + 1, (size[0] // 3 + 1, size[1] // 3 + 1))
    ids = np.kron(blocks, np.ones((3, 3), np.int64))[: size[0], : size[1]]
    segments = []
    for i in range(number):
        category, isthing, crowd = KINDS[rng.integers(len(KINDS))]
        segments.append(
            {"id": 1000 + i, "category_id": category, "isthing": isthing, "iscrowd": crowd}
        )
    present = np.bincount(ids.reshape(-1), minlength=number + 1)[1:] > 0
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return Scene(image, Labels(ids.astype(np.uint8), segments, present))


def copy_of(scene: Scene) -> Scene:
    labels = scene.labels
    return Scene(
        scene.image.copy(),
        Labels(labels.ids.copy(), list(labels.segments), labels.present.copy()),
    )


def equal(one: Scene, other: Scene) -> bool:
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.labels.ids, other.labels.ids)
        and one.labels.segments == other.labels.segments
        and np.array_equal(one.labels.present, other.labels.present)
    )


def naive(
    scene: Scene, other: Scene, chosen: Any, corner: tuple[int, int], min_visible: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image and one mask for each segment, pixel by pixel."""
    height, width = scene.labels.ids.shape
    image = scene.image.copy()
    count = len(scene.labels.segments)
    masks = [scene.labels.ids == i + 1 for i in range(count)]
    masks += [np.zeros((height, width), bool) for _ in chosen]
    before = [int(mask.sum()) for mask in masks]
    for y in range(other.labels.ids.shape[0]):
        for x in range(other.labels.ids.shape[1]):
            there = y + corner[0], x + corner[1]
            inside = 0 <= there[0] < height and 0 <= there[1] < width
            if not inside or other.labels.ids[y, x] not in chosen:
                continue
            for mask in masks:
                mask[there] = False
            masks[count + list(chosen).index(other.labels.ids[y, x])][there] = True
            image[there] = other.image[y, x]
    for i, segment in enumerate(scene.labels.segments):
        left = int(masks[i].sum())
        thing = segment["isthing"] and not segment["iscrowd"]
        if thing and left < before[i] and left < min_visible * before[i]:
            masks[i][:] = False
    return image, masks


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    other_size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    numbers=st.tuples(st.integers(0, 6), st.integers(1, 6)),
    min_visible=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_paste_equals_one_mask_per_segment(
    seed: int,
    size: tuple[int, int],
    other_size: tuple[int, int],
    numbers: tuple[int, int],
    min_visible: float,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    scene, other = random_scene(rng, size, numbers[0]), random_scene(rng, other_size, numbers[1])
    kept = copy_of(scene), copy_of(other)
    chosen = rng.permutation(numbers[1])[: data.draw(st.integers(1, numbers[1]))] + 1
    corner = tuple(
        data.draw(st.integers(min(0, a - b), max(0, a - b)))
        for a, b in zip(size, other_size, strict=True)
    )
    found = paste(scene, other, chosen, corner, min_visible=min_visible)
    image, masks = naive(scene, other, chosen, corner, min_visible)
    assert equal(scene, kept[0]) and equal(other, kept[1])
    assert np.array_equal(found.image, image)
    # Each pixel has one id or is void, and each id has the pixels of its mask.
    assert np.array_equal(found.labels.ids, sum(m * (i + 1) for i, m in enumerate(masks)))
    assert found.labels.present.tolist() == [bool(mask.any()) for mask in masks]
    sources = [other.labels.segments[i - 1] for i in chosen]
    assert found.labels.segments == scene.labels.segments + sources


def test_ids_beyond_a_byte_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    scene, other = random_scene(rng, (60, 60), 250), random_scene(rng, (60, 60), 40)
    found = paste(scene, other, np.arange(1, 41), (0, 0))
    for i in range(40):
        assert np.array_equal(found.labels.ids == 251 + i, other.labels.ids == i + 1)


def test_blurred_edges_mix_pixels_and_leave_ids_sharp() -> None:
    labels = Labels(
        np.ones((40, 40), np.uint8),
        [{"category_id": 0, "isthing": False, "iscrowd": 0}],
        np.ones(1, bool),
    )
    scene = Scene(np.zeros((40, 40, 3), np.uint8), labels)
    ids = np.zeros((40, 40), np.uint8)
    ids[10:30, 10:30] = 1
    segment = {"category_id": 1, "isthing": True, "iscrowd": 0}
    other = Scene(np.full((40, 40, 3), 200, np.uint8), Labels(ids, [segment], np.ones(1, bool)))
    sharp = paste(scene, other, np.array([1]), (0, 0))
    soft = paste(scene, other, np.array([1]), (0, 0), blur=1.5)
    assert np.array_equal(sharp.labels.ids, soft.labels.ids)
    row = soft.image[20, :, 0].astype(int)
    assert row[20] == 200 and row[2] == 0  # far from the edge nothing is mixed
    assert (np.diff(row[4:20]) >= 0).all() and 60 < row[10] < 140
    assert len(np.unique(row[4:20])) > 5 and set(np.unique(sharp.image)) == {0, 200}


def pair(tmp_path: Path) -> tuple[TinyDataset, list[dict[str, Any]]]:
    tiny = TinyDataset(tmp_path / "pair")
    return tiny, tiny.load()


def donors_of(records: list[dict[str, Any]], **options: Any) -> Donors:
    return Donors(records, [CAR, 2], **options)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_mapper_keeps_its_promises(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    _, records = pair(tmp_path_factory.mktemp("data"))
    steps = (LargeScaleJitter(40, 0.6, 1.8), PadToSize(40, 40, (128, 128, 128)))
    with_paste = mapper(
        *steps, copy_paste=CopyPaste(min_visible=0.2), targets=("instances", "sem_seg")
    )
    np.random.seed(seed)
    plain = mapper(*steps, targets=("instances", "sem_seg"))(records[1])
    np.random.seed(seed)
    found = with_paste(records[1], donors_of(records))
    ids, rows = found["panoptic_ids"], found["segments"]
    assert ids.shape == (40, 40) and set(ids.unique().tolist()) | {0} == set(range(len(rows) + 1))
    # What changed was covered by a pasted car, or is the void of a hidden thing.
    changed = (found["image"] != plain["image"]).any(0)
    masks, in_cars = found["instances"].gt_masks, torch.zeros_like(changed)
    for mask, category in zip(masks, found["instances"].gt_classes, strict=True):
        in_cars |= mask & (category == CAR)
    assert (in_cars | ~changed).all()
    # All targets say the same.
    sem_seg = torch.full_like(found["sem_seg"], 255)
    for i, category in enumerate(rows.gt_classes.tolist()):
        sem_seg[ids == i + 1] = category
    assert torch.equal(sem_seg, found["sem_seg"])
    things = (rows.gt_isthing & ~rows.gt_iscrowd).nonzero()[:, 0]
    instances = found["instances"]
    assert torch.equal(instances.gt_masks.tensor, ids[None] == (things + 1)[:, None, None])
    assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
    assert torch.equal(instances.gt_classes, rows.gt_classes[things])
    assert int(rows.gt_iscrowd.sum()) <= 1  # a crowd is never copied


def test_pasted_things_equal_their_pixels_in_the_other_image(tmp_path: Path) -> None:
    _, records = pair(tmp_path)
    for seed in range(5):
        np.random.seed(seed)
        found = mapper(copy_paste=CopyPaste())(records[1], donors_of(records[:1]))
        pasted = found["panoptic_ids"] == len(found["segments"])
        image = np.asarray(Image.open(records[0]["file_name"]))[:, :, ::-1]
        expected = torch.from_numpy(image.transpose(2, 0, 1).copy())
        assert int(pasted.sum()) == 100 and found["segments"].gt_classes[-1] == CAR
        assert torch.equal(found["image"][:, pasted], expected[:, pasted])


@pytest.mark.parametrize("keep_empty", [False, True])
def test_a_hidden_thing_is_no_target_even_where_empty_ones_are_kept(
    tmp_path: Path, keep_empty: bool
) -> None:
    # Both cars lie at the same place: the pasted one hides the other.
    _, records = pair(tmp_path)
    found = mapper(copy_paste=CopyPaste(), keep_empty=keep_empty)(records[0], donors_of(records))
    assert found["segments"].gt_classes.tolist() == [0, CAR]
    assert len(found["instances"]) == 1


def test_probability_number_and_same_seed(tmp_path: Path) -> None:
    _, records = pair(tmp_path)
    step, donors = CopyPaste(probability=0.3), donors_of(records)
    calls: list[str] = []

    def read(record: dict[str, Any], classes: Any) -> None:
        calls.append(record["file_name"])

    scene = random_scene(np.random.default_rng(0), (9, 9), 3)
    for _ in range(2):
        np.random.seed(1)
        for _ in range(200):
            assert step(scene, donors, read) is scene
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert 35 < len(calls) / 2 < 85 and len(set(calls)) == 2
    other = random_scene(np.random.default_rng(1), (30, 30), 60)
    numbers = set()
    for seed in range(60):
        np.random.seed(seed)
        found = CopyPaste(max_things=4)(scene, donors, lambda record, classes: other)
        numbers.add(len(found.labels.segments) - 3)
    assert numbers == {1, 2, 3, 4}


def records_of(*classes: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "file_name": str(i),
            "pan_seg_file_name": str(i),
            "segments_info": [
                {"category_id": abs(c), "isthing": c != 0, "iscrowd": int(c < 0)} for c in one
            ],
        }
        for i, one in enumerate(classes)
    ]


def test_classes_are_drawn_evenly() -> None:
    records = records_of([1, 1], [1], [1, 0], [1, 2], [0], [-2], [3])
    np.random.seed(0)
    drawn = [Donors(records, [1, 2], by_class=True).draw() for _ in range(600)]
    files = [d.record["file_name"] for d in drawn if d is not None and d.classes == (2,)]
    assert set(files) == {"3"} and 240 < len(files) < 360
    files = [d.record["file_name"] for d in drawn if d is not None and d.classes == (1,)]
    assert set(files) == {"0", "1", "2", "3"}
    np.random.seed(0)
    drawn = [Donors(records, [1, 2]).draw() for _ in range(100)]
    assert {d.record["file_name"] for d in drawn if d} == {"0", "1", "2", "3"}
    assert all(d is not None and d.classes == {1, 2} for d in drawn)


def test_donors_among_a_subset() -> None:
    donors = Donors(records_of([1], [1], [0], [2]), [1, 2], by_class=True)
    assert len(donors) == 3 and donors.among(range(4)) is donors
    part = donors.among([3, 2])
    assert len(part) == 1 and part.draw().record["file_name"] == "3"
    assert donors.among([2]).draw() is None


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.5
    for key, value in keys.items():
        cfg.INPUT.COPY_PASTE[key] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PROBABILITY", 1.5),
        ("MIN_VISIBLE", -0.5),
        ("MAX_THINGS", -1),
        ("BLUR", -1.0),
        ("BLUR", float("nan")),
        ("BLUR", float("inf")),
        ("DRAW_BY", "classes"),
    ],
)
def test_bad_values_name_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"INPUT.COPY_PASTE.{key} "):
        CopyPaste.from_keys(config(**{key: value}).INPUT.COPY_PASTE)


def test_unreadable_donors_are_skipped_or_an_error(tmp_path: Path) -> None:
    from panoptic_ext.errors import UnreadableFileError

    _, records = pair(tmp_path)
    Path(records[0]["file_name"]).write_bytes(b"no image")
    options: dict[str, Any] = {"copy_paste": CopyPaste()}
    with pytest.raises(UnreadableFileError):
        mapper(**options)(records[1], donors_of(records[:1]))
    found = mapper(skip_corrupt=True, **options)(records[1], donors_of(records[:1]))
    assert found is not None and len(found["segments"]) == 3


def test_mapper_of_a_config(clean_catalogs: None, tmp_path: Path) -> None:
    assert PanopticDatasetMapper(config(), True).copy_paste == CopyPaste(probability=0.5)
    assert PanopticDatasetMapper(config(), False).copy_paste is None
    assert PanopticDatasetMapper(config(PROBABILITY=0.0), True).copy_paste is None
