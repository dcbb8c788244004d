"""What the command lines share."""

from __future__ import annotations

import errno

import pytest

from panoptic_ext.command_line import explain_os_error, split_options


@pytest.mark.parametrize(
    ("values", "opts", "expected"),
    [
        (["a", "b"], [], (["a", "b"], [])),
        (["a", "MODEL.DEVICE", "cpu"], ["SEED", "3"],
         (["a"], ["MODEL.DEVICE", "cpu", "SEED", "3"])),
        (["a", "SEED", "3"], [], (["a"], ["SEED", "3"])),
        (["a", "FLOAT32_PRECISION", "high"], [], (["a"], ["FLOAT32_PRECISION", "high"])),
        (["a", "DATASETS.PANOPTIC.my_set.JSON", "x"], [],
         (["a"], ["DATASETS.PANOPTIC.my_set.JSON", "x"])),
        (["IMAGE.JPG", "MODEL.DEVICE", "cpu"], [], (["IMAGE.JPG"], ["MODEL.DEVICE", "cpu"])),
        ([], ["SEED", "3"], ([], ["SEED", "3"])),
    ],
)  # fmt: skip
def test_config_values_after_many_values(
    values: list[str], opts: list[str], expected: tuple
) -> None:
    assert split_options(values, opts, is_value=lambda word: word == "IMAGE.JPG") == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left"), "cannot write to out: No space left"),
        (FileNotFoundError(2, "No such file", "in/a.jpg"), "in/a.jpg: No such file"),
        (PermissionError(13, "Permission denied", "out/b"), "cannot write to out/b: Perm"),
        (PermissionError(13, "Permission denied", "outside"), "outside: Permission"),
        (OSError("odd"), "cannot write to out: odd"),
    ],
)
def test_the_file_of_an_error_is_named(error: OSError, text: str) -> None:
    assert explain_os_error(error, "out").startswith(text)
