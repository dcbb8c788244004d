"""PredictAhead: the results of single files, and an error in the call of its own file only."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.errors import UnreadableFileError
from panoptic_ext.prediction.ahead import PredictAhead
from tests.prediction.test_predictor import FakeModel, predictor


@pytest.fixture
def files(tmp_path):
    """Six images of one size, the third one broken."""
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "2.png").write_bytes(b"")
    return paths


def ids_of(output):
    return output["panoptic_seg"][0].numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_each_file_has_its_own_result_or_error(files, batch_size):
    model = FakeModel()
    ahead = PredictAhead(predictor(model), files, ids_of, batch_size=batch_size)
    for number, path in enumerate(files):
        if number == 2:
            with pytest.raises(UnreadableFileError, match=r"2\.png"):
                ahead(path)
            continue
        image, ids = ahead(path)
        assert (image == np.asarray(Image.open(path))).all()
        assert (ids == ids_of(predictor()(image[:, :, ::-1]))).all()
    expected = {1: [1] * 5, 2: [2, 2, 1], 4: [3, 2], 100: [5]}
    assert [len(batch) for batch in model.batches] == expected[batch_size]


def test_files_of_a_failed_batch_are_predicted_alone(files):
    class OneBad(FakeModel):
        def one(self, image):
            if (image.permute(1, 2, 0).numpy() == bad).all():
                raise RuntimeError("this one")
            return super().one(image)

    bad = np.asarray(Image.open(files[1]))
    ahead = PredictAhead(predictor(OneBad()), files, ids_of, batch_size=3)
    failed = []
    for path in (*files[:2], *files[3:]):
        try:
            ahead(path)
        except RuntimeError:
            failed.append(path)
    assert failed == [files[1]]


def test_skipped_files_need_not_be_asked_for(files):
    ahead = PredictAhead(predictor(), files, ids_of, batch_size=2)
    ahead(files[0])
    image, _ = ahead(files[5])
    assert (image == np.asarray(Image.open(files[5]))).all()
