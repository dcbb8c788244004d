"""The command that goes on after Ctrl-C can be copied, and --resume may be appended to one."""

from __future__ import annotations

import shlex
import shutil
import sys

import pytest

from panoptic_ext.commands.train import main, parse_args
from panoptic_ext.engine.resume_command import GOES_ON, command_to_resume, with_command
from tests import ROOT

ARGV = ["--config-file", "my file.yaml", "SOLVER.STEPS", "(1, 2)"]


@pytest.mark.parametrize("argv", [ARGV, [*ARGV, "--resume"], ["--resume", *ARGV]])
def test_the_command_resumes_with_the_same_config(monkeypatch, argv):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["a folder/train_net.py", "other"])
    message = with_command(f"stopped. {GOES_ON}", argv)
    assert message.startswith("stopped. To go on from there: ")
    _python, script, *words = shlex.split(message.split(": ", 1)[1])
    assert (script, words) == ("a folder/train_net.py", ["--resume", *ARGV])
    args = parse_args(words)
    assert args.resume and args.opts == ARGV[2:] and args.config_file == "my file.yaml"


@pytest.mark.parametrize(
    ("script", "start"),
    [
        ("/nowhere/bin/panoptic-ext", "/nowhere/bin/panoptic-ext train"),
        ("/site/panoptic_ext/__main__.py", "PYTHON -m panoptic_ext train"),
        ("/site/panoptic_ext_cli.py", "PYTHON /site/panoptic_ext_cli.py train"),
    ],
)
def test_the_command_fits_how_it_was_started(monkeypatch, script, start):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", [script, "train", *ARGV])
    expected = start.replace("PYTHON", shlex.quote(sys.executable))
    assert command_to_resume(ARGV) == f"{expected} --resume {shlex.join(ARGV)}"


def test_an_installed_program_goes_by_its_name(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    script = tmp_path / "panoptic-ext"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script), "train", "A", "b"])
    assert command_to_resume(["A", "b"]) == "panoptic-ext train --resume A b"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert command_to_resume(["A", "b"]) == f"torchrun ... {script} train --resume A b"
    monkeypatch.setattr(sys, "argv", ["/site/panoptic_ext/__main__.py", "train", "A", "b"])
    assert command_to_resume(["A", "b"]) == "torchrun ... -m panoptic_ext train --resume A b"


def test_a_message_of_an_evaluation_stays():
    assert with_command("stopped after 3 images", ARGV) == "stopped after 3 images"


def test_torchrun_is_named_where_it_started_the_workers(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(sys, "argv", ["train_net.py"])
    assert command_to_resume(["A", "b"]) == "torchrun ... train_net.py --resume A b"


def test_flags_may_follow_pairs_and_other_options_may_not(capsys):
    args = parse_args([*ARGV, "--resume", "OUTPUT_DIR", "--resume", "--eval-only"])
    assert args.resume and args.eval_only and not args.dry_run
    assert args.opts == [*ARGV[2:], "OUTPUT_DIR", "--resume"]
    config = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")
    assert main(["--config-file", config, "SEED", "1", "--num-gpus", "2"]) == 2
    assert "--num-gpus comes after a KEY VALUE pair" in capsys.readouterr().err
