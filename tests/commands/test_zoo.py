"""`panoptic-ext zoo`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panoptic_ext.commands.zoo import main
from panoptic_ext.model_zoo import catalog
from panoptic_ext.model_zoo.entry import ZooEntry

pytestmark = pytest.mark.usefixtures("own_zoo")


def test_list_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "mask2former_R50*", "--task", "panoptic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "name" and lines[-1].startswith("4 models. ")
    (row,) = [line for line in lines if line.startswith("mask2former_R50_coco ")]
    for text in ("panoptic", "coco_panoptic_val", "PQ 51.9, AP 41.7, mIoU 61.7", "CC BY-NC 4.0 !"):
        assert f"  {text}  " in f"{row}  "
    assert max(map(len, lines)) < 160


def test_list_leaves_out_empty_columns_and_suggests_a_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "backbones/*"]) == 0
    header = capsys.readouterr().out.split("\n")[0].split()
    assert header == ["name", "task", "size", "licence", "here"]
    assert main(["list", "mask2fomer_R50_coco"]) == 0
    expected = "no model fits 'mask2fomer_R50_coco'; did you mean 'mask2former_R50_coco'?\n"
    assert capsys.readouterr().out == expected
    assert main(["list", "nothing", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_list_and_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert sorted(rows) == catalog.names()
    assert main(["info", "mask2former_R50_coco", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row | {"classes": []} == rows["mask2former_R50_coco"]
    assert row["commercial_use"] is False and len(row["classes"]) == 133
    assert row["classes"][0] == {"name": "person", "isthing": True}
    assert row["weights"]["address"].startswith("https://") and (row["file"], row["here"]) == (
        "",
        False,
    )


def test_info_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "mask2former_R50_coco"]) == 0
    printed = capsys.readouterr().out
    assert "80 things and 53 stuff: person, bicycle, " in printed
    for text in ("licence         CC BY-NC 4.0", "figures         PQ 51.9", "commercial_use  no"):
        assert text in printed
    assert "sha256" not in printed, "what is not known is left out"


def test_get_and_verify(
    served: ZooEntry, capsys: pytest.CaptureFixture[str], own_zoo: Path
) -> None:
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.startswith("nothing to verify: no file of the zoo")
    assert main(["get", "tiny_street"]) == 0
    path = own_zoo / "zoo" / "tiny_street.pth"
    assert capsys.readouterr().out == f"tiny_street: {path}\n"
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == (
        f"tiny_street: good, the sha256 of the entry ({path})\n1 of 1 are good\n"
    )
    assert main(["list", "tiny_street"]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("yes")
    path.write_bytes(b"x" * path.stat().st_size)
    assert main(["verify", "tiny_street"]) == 1
    printed = capsys.readouterr().out
    assert "it is damaged, or another file" in printed and "0 of 1 are good" in printed


def test_unknown_names_are_errors_before_anything_is_fetched(
    served: ZooEntry, capsys: pytest.CaptureFixture[str], own_zoo: Path
) -> None:
    assert main(["get", "tiny_street", "tiny_stret"]) == 2
    assert "did you mean 'tiny_street'?" in capsys.readouterr().err
    assert not (own_zoo / "zoo").exists()


def test_add_makes_an_entry_of_a_run(
    zoo_run: Path,
    own_zoo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["add", str(zoo_run)]) == 2
    assert "give its output folder and a --name" in capsys.readouterr().err
    assert main(["add", str(zoo_run), "--name", "mine", "--licence", "MIT"]) == 0
    path = tmp_path / "zoo" / "mine" / "mine.yaml"
    printed = capsys.readouterr().out
    assert printed.endswith(f"valid: mine\nto use it: export PANOPTIC_EXT_ZOO={path}\n")
    entry = catalog.find("mine")
    assert (entry.licence, entry.commercial_use, entry.path) == ("MIT", True, str(path))


def test_add_checks_entries(tiny_entry: ZooEntry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", tiny_entry.folder]) == 0
    assert capsys.readouterr().out.startswith("valid: tiny_street\n")
    path = Path(tiny_entry.path)
    path.write_text(path.read_text().replace("licence:", "license:"))
    assert main(["add", tiny_entry.path]) == 2
    assert (
        "unknown key of a zoo entry 'license'; did you mean 'licence'?" in capsys.readouterr().err
    )
