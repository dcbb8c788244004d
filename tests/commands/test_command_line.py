"""What the commands share: options, exit codes and error messages."""

from __future__ import annotations

import argparse
import errno
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from panoptic_ext.commands.command_line import (
    command_main,
    explain_os_error,
    fraction,
    non_negative_int,
    split_options,
)
from panoptic_ext.errors import ConfigError
from panoptic_ext.interruption import Interrupted, Terminated


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
def test_config_values_after_an_option_of_many_values(
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


def test_exit_codes_and_messages_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    def ends_with(error: BaseException, **decoration: Any) -> int:
        @command_main(parse_args, stopped=lambda args: "nothing was done", **decoration)
        def main(args: argparse.Namespace) -> int:
            raise error

        return main(["out"])

    def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
        assert argv is not None
        return argparse.Namespace(output=argv[0])

    def output(args: argparse.Namespace) -> str:
        return args.output

    denied = PermissionError(13, "Permission denied", "out/a.png")
    assert ends_with(Interrupted(signal.SIGTERM, "stopped after 2")) == 143
    assert ends_with(KeyboardInterrupt()) == 130
    assert ends_with(Terminated()) == 143
    assert ends_with(denied, output=output) == 2
    assert ends_with(ConfigError("no such key"), worker=lambda: " (worker 1)") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        *("stopped after 2", "nothing was done", "nothing was done"),
        "error: cannot write to out/a.png: Permission denied",
        "error (worker 1): no such key",
    ]
    with pytest.raises(PermissionError):
        ends_with(denied, output=None)
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((non_negative_int, "0", 0), (non_negative_int, "12", 12)),
        *((non_negative_int, text, "whole number of 0 or more") for text in ("-1", "1.5", "x")),
        *((fraction, "0", 0.0), (fraction, "0.25", 0.25), (fraction, "1", 1.0)),
        *((fraction, text, "number from 0 to 1") for text in ("-0.1", "1.1", "nan", "x")),
    ],
)
def test_types_of_number_options(kind: Callable[[str], float], text: str, value: object) -> None:
    if isinstance(value, str):
        with pytest.raises(argparse.ArgumentTypeError, match=value):
            kind(text)
    else:
        assert kind(text) == value
