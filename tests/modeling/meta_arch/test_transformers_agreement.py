"""Models of transformers here give what transformers' own pipeline and image processors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_ext.postprocessing.windows import window_starts
from tests.tiny.finished_run import picture
from tests.tiny.transformers_models import save_tiny
from tests.tiny.transformers_predictor import (
    CLASSES,
    EACH_FAMILY,
    LOW,
    post_processed,
    raw_outputs,
    skip_absent,
    tiny_predictor,
    transformers,
)

SIZES = [(120, 160), (161, 90), (64, 64)]  # height, width: each is resized another way
STUFF = [0, 1, 2, 3]
TIES = 3  # pixels of a picture at which two queries tie in float32


@pytest.fixture(scope="module", params=EACH_FAMILY)
def folder(request, tmp_path_factory):
    """A tiny model of each family."""
    path = tmp_path_factory.mktemp(request.param)
    return save_tiny(request.param, path, CLASSES, things=range(len(CLASSES)))


def images():
    """Arrays (H, W, 3), BGR, of several sizes."""
    return [np.asarray(picture(seed, *size))[..., ::-1] for seed, size in enumerate(SIZES)]


def test_the_pipeline_finds_the_same_segments_in_pictures(folder, tmp_path):
    pipeline = transformers.pipeline("image-segmentation", model=folder)
    predictor = tiny_predictor(folder, MODEL__TRANSFORMERS__STUFF_CLASSES=[], **LOW)
    source = predictor.model.source
    if source.tokenizer is not None:
        # OneFormer's own processor, as ours, sets the padding of the task's text to 0; the pipeline
        # leaves the padding token there.
        text, length = ["the task is panoptic"], source.config.task_seq_len
        tokens = source.tokenizer(text, padding="max_length", max_length=length)["input_ids"]
        source.task_tokens["panoptic"] = tokens[0]
    found = 0
    for seed, (height, width) in enumerate(SIZES):
        path = tmp_path / "picture.png"
        picture(seed, height, width).save(path)
        ids, segments = predictor(str(path))["panoptic_seg"]
        theirs = pipeline(str(path), threshold=0.4, overlap_mask_area_threshold=0.1)
        assert [CLASSES[s["category_id"]] for s in segments] == [t["label"] for t in theirs]
        for segment, their in zip(segments, theirs, strict=True):
            mask = np.asarray(their["mask"]) > 0
            assert segment["score"] == pytest.approx(their["score"], abs=1e-5)
            differing = int((mask != (ids == segment["id"]).numpy()).sum())
            assert differing <= TIES and abs(segment["area"] - mask.sum()) <= differing
        found += len(segments)
    assert found > 3


def test_the_processor_gives_the_same_segments_with_shared_stuff(folder):
    names = [CLASSES[i] for i in STUFF]
    predictor = tiny_predictor(folder, MODEL__TRANSFORMERS__STUFF_CLASSES=names, **LOW)
    queries = 0
    for image in images():
        ids, segments = predictor(image)["panoptic_seg"]
        their_map, theirs = post_processed(predictor.model, image, STUFF)
        # Their segments are queries: those of one stuff class are listed one by one.
        numbers, firsts = [], {}
        for their in theirs:
            shares = their["label_id"] in STUFF and their["label_id"] in firsts
            number = firsts[their["label_id"]] if shares else len(set(numbers)) + 1
            firsts.setdefault(their["label_id"], number)
            numbers.append(number)
        assert sorted(set(numbers)) == [s["id"] for s in segments]
        void = -1 if (their_map < 0).any() else 0
        their_ids = torch.full((len(segments) + 1,), void)
        for their, number in zip(theirs, numbers, strict=True):
            their_ids[number] = their["id"]
            assert segments[number - 1]["category_id"] == their["label_id"]
            assert segments[number - 1]["score"] >= their["score"] - 1e-6
        # Also where they repeat the id of another segment, see `product_segments`.
        assert (their_ids[ids.long()] != their_map).sum() <= TIES
        queries += len(theirs)
    assert queries > 3


def test_semantic_scores_are_the_processors(folder):
    predictor = tiny_predictor(folder)
    for image in images():
        found = predictor(image)["sem_seg"]
        outputs, processor = raw_outputs(predictor.model, image)
        if predictor.model.family.is_square and outputs.patch_offsets is None:
            outputs.patch_offsets = [(0, 0, 64)]  # transformers 4 knows windows alone
        size = image.shape[:2]
        if predictor.model.family.is_square and size[0] != size[1]:
            continue  # transformers forgets to crop EoMT's padding there
        expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        best, second = found.topk(2, dim=0).values
        ties = best - second < 1e-6
        assert torch.equal(found.argmax(0)[~ties], expected[~ties])
        assert ties.float().mean() < 0.05


def test_a_batch_of_several_sizes_is_its_images_one_by_one(folder):
    model = tiny_predictor(folder, **LOW).model
    inputs = [
        {"image": torch.as_tensor(i.transpose(2, 0, 1).copy()), "height": 50, "width": 70}
        for i in [*images(), images()[0]]
    ]
    with torch.no_grad():
        together, alone = model(inputs), [model([x])[0] for x in inputs]
    for one, other in zip(together, alone, strict=True):
        # Convolutions of two images round otherwise than those of one.
        (ids, segments), (other_ids, others) = one["panoptic_seg"], other["panoptic_seg"]
        assert [s["category_id"] for s in segments] == [s["category_id"] for s in others]
        assert ids.shape == (50, 70) and (ids != other_ids).float().mean() < 0.01
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", skip_absent("eomt"))
@pytest.mark.parametrize("size", [(96, 150), (150, 96), (64, 64)])
def test_a_semantic_eomt_sees_windows(tmp_path, monkeypatch, size, family):
    folder = save_tiny(family, tmp_path, CLASSES)
    edges = {"shortest_edge": 64, "longest_edge": None}
    transformers.EomtImageProcessor(size=edges, do_split_image=True).save_pretrained(folder)
    predictor = tiny_predictor(folder)
    image = np.asarray(picture(5, *size))
    found = predictor(image)
    assert set(found) == {"sem_seg"}
    outputs, processor = raw_outputs(predictor.model, image)
    outputs.patch_offsets = processor(image.copy(), return_tensors="pt")["patch_offsets"]
    assert len(outputs.patch_offsets) == (1 if size[0] == size[1] else 2)
    theirs = []
    merge = processor.merge_image_patches  # transformers 4 returns its classes alone, no scores

    def merge_and_keep(*args):
        theirs.extend(merge(*args))
        return theirs

    monkeypatch.setattr(processor, "merge_image_patches", merge_and_keep)
    processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    torch.testing.assert_close(found["sem_seg"], theirs[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", skip_absent("eomt"))
@pytest.mark.parametrize("size", [(64, 64), (64, 65), (190, 64), (64, 257)])
def test_windows_of_any_model_are_those_of_a_semantic_eomt(tmp_path, size, family):
    folder = save_tiny(family, tmp_path, CLASSES)
    alone = {"MODEL__TRANSFORMERS__PANOPTIC_ON": False, "MODEL__TRANSFORMERS__INSTANCE_ON": False}
    windowed = tiny_predictor(folder, TEST__SEMANTIC_WINDOWS=True, INPUT__IMAGE_SIZE=64, **alone)
    edges = {"shortest_edge": 64, "longest_edge": None}
    processor = transformers.EomtImageProcessor(size=edges, do_split_image=True)
    processor.save_pretrained(folder)
    image = np.asarray(picture(5, *size))
    offsets = processor(image.copy(), return_tensors="pt")["patch_offsets"]
    assert [int(start) for _, start, _ in offsets] == window_starts(max(size), 64)
    found, expected = windowed(image)["sem_seg"], tiny_predictor(folder)(image)["sem_seg"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
