"""Config files: data and never code, with errors that name file, line and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.config.yaml_reader import merge_settings, read_file, read_opts
from panoptic_ext.errors import ConfigError


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def merged(path: str = "", opts: tuple[str, ...] = ()) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    merge_settings(cfg, [*(read_file(path) if path else []), *read_opts(opts)])
    return cfg


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/tuple [1]",
        "!!python/name:os.system ''",
    ],
)
def test_python_tags_are_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    proof = tmp_path / "executed"
    path = write(tmp_path, "a.yaml", f"SOLVER:\n  STEPS: {tag.format(proof)}\n")
    with pytest.raises(
        ConfigError, match=r"a\.yaml:2: .*tag.*refused and not run.*Write the value"
    ):
        merged(path)
    assert not proof.exists()


def test_bases_apply_in_order_relative_to_their_file(tmp_path: Path) -> None:
    write(tmp_path, "base/root.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    write(tmp_path, "base/mid.yaml", "_BASE_: root.yaml\nSOLVER: {MAX_ITER: 8}\n")
    path = write(tmp_path, "leaf/a.yaml", "_BASE_: ../base/mid.yaml\nSEED: 4\n")
    cfg = merged(path, ("SEED", "5"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.5, 8, 5)


def test_circle_and_missing_base(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        merged(path)
    path = write(tmp_path, "c.yaml", "_BASE_: nothing.yaml\n")
    with pytest.raises(ConfigError, match=r"nothing\.yaml, named by _BASE_ of .*c\.yaml"):
        merged(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  MAX_ITERS: 3\n", r"a\.yaml:2: unknown config key 'SOLVER.MAX_ITERS'; did you "
         r"mean 'SOLVER.MAX_ITER'"),
        ("SOLVR: {BASE_LR: 1}\n", r"unknown config key 'SOLVR.BASE_LR'; did you mean 'SOLVER"),
        ("BASE_LR: 1\n", r"unknown config key 'BASE_LR'"),
        ("SOLVER:\n  MAX_ITER: many\n", r"a\.yaml:2: SOLVER.MAX_ITER must be of type int.*'many'"),
        ("SOLVER: 3\n", r"SOLVER is a block of keys, found 3"),
        ("DATASETS:\n  TRAIN: coco\n", r"of type tuple.*write \['coco'\]"),
        ("SOLVER:\n  BASE_LR:\n", r"yaml:2: SOLVER.BASE_LR has no value \(None\), .* type float"),
        ("DATASETS: {TRAIN: null}\n", r"TRAIN has no value .*type tuple; for none write \[\]"),
        ("MODEL: {DEVICE: None}\n", r"DEVICE has no value .*type str such as 'cuda'"),
        ("SEED: 1\nSEED: 2\n", r"a\.yaml:2: SEED is given twice in one block, before in line 1, "
         r"and the values differ: 1 and 2; remove"),
        ("X: [{A: 1, A: 2}]\n", r"a\.yaml:1: X.A is given twice"),
        ("SOLVER: {WEIGHT_DECAY_EMBED: much}\n", r"EMBED must be a number or None, found 'much'"),
        ("INPUT: {KEEP_EMPTY_SEGMENTS: 1}\n", r"must be True, False or None, found 1"),
        ("DATASETS: {TRAIN: [[a]]}\n", r"DATASETS.TRAIN holds \['a'\], expected a text for each"),
        ("INPUT: {MIN_SIZE_TRAIN: [640, big]}\n", r"holds 'big', expected a number for each"),
        ("SEED: [1\n", r"a\.yaml:2: invalid YAML"),
        ("- 1\n", r"holds a list, expected keys"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merged(write(tmp_path, "a.yaml", text))


BRACKETS = "[" * 1000 + "]" * 1000
BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{{', '.join(f'k{i}: *{old}' for i in range(10))}}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"DATASETS:\n  TRAIN: {BRACKETS}\n", r"a\.yaml:2: invalid YAML: values are nested more"),
        (f"_BASE_: {BRACKETS}\n", r"a\.yaml:1: invalid YAML: values are nested more"),
        ("DATASETS: {PANOPTIC: {x: " + "{a: " * 900 + "1" + "}" * 902, "nested more"),
        (f"SOLVER:\n  BASE_LR: {'-' * 100_000}1\n", r"a\.yaml:2: SOLVER.BASE_LR must be of type f"),
        (f"SOLVER:\n  MAX_ITER: {'9' * 6000}\n", r"a\.yaml:2: .* a number of 6000 characters"),
        (f"SOLVER: {{BASE_LR: {'9' * 350}}}\n", r"does not fit in 64 bits"),
        (BOMB, r"a\.yaml:\d: invalid YAML: it holds more than 100000 values"),
        ("DATASETS: {TRAIN: &a [*a]}\n", "an alias stands inside what it is an alias of"),
        ("SEED: !!bool maybe\n", r"a\.yaml:1: invalid YAML: 'maybe' is no bool"),
        ("SEED: 2001-99-99\n", "'2001-99-99' is no timestamp"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("in_base", [False, True])
def test_hostile_yaml_is_one_short_error(
    tmp_path: Path, text: str, message: str, in_base: bool
) -> None:
    """These texts once ended in tracebacks, or took gigabytes of memory."""
    path = write(tmp_path, "a.yaml", text)
    if in_base:
        path = write(tmp_path, "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match=message) as error:
        merged(path)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("key", ["SOLVER.BASE_LR", "SOLVER.STEPS", "SOLVER.WEIGHT_DECAY_EMBED"])
@pytest.mark.parametrize(
    "value",
    [BRACKETS, "-" * 100_000 + "1", "9" * 6000, "9" * 4000, "{[]: 1}"],
    ids=["brackets", "minus", "digits", "fewer digits", "unhashable"],
)
def test_hostile_values_of_the_command_line_are_text(key: str, value: str) -> None:
    """A value that Python cannot read as a literal, or as a number of 64 bits, is text."""
    with pytest.raises(ConfigError, match=rf"command line: {key} must be") as error:
        merged(opts=(key, value))
    assert len(str(error.value)) < 400
    assert value == merged(opts=("MODEL.WEIGHTS", value)).MODEL.WEIGHTS


def test_a_key_of_a_thousand_parts_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"unknown config key 'DATASETS\.PANOPTIC\.a"):
        merged(opts=("DATASETS.PANOPTIC." + "a." * 1000 + "b", "1"))


def test_a_key_given_twice_with_one_value_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The published COCO panoptic files give a key twice with the same value."""
    text = "SOLVER:\n  STEPS: [3, 4]\n  MAX_ITER: 9\n  STEPS: [3, 4]\n"
    assert merged(write(tmp_path, "a.yaml", text)).SOLVER.STEPS == (3, 4)
    (line,) = caplog.messages
    assert "a.yaml:4: SOLVER.STEPS is given twice in one block, before in line 2" in line


def test_a_key_beside_a_merged_block_is_no_duplicate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "DATASETS:\n  PANOPTIC:\n    a: &a {JSON: a.json, PNG_ROOT: a}\n"
        "    b: {<<: *a, JSON: b.json}\n"
    )
    cfg = merged(write(tmp_path, "a.yaml", text))
    assert dict(cfg.DATASETS.PANOPTIC.b) == {"JSON": "b.json", "PNG_ROOT": "a"}
    assert not caplog.messages


def test_sizes_of_a_published_expression_are_read_and_not_run(tmp_path: Path) -> None:
    """Files of crops have them; any other expression is refused."""
    text = 'INPUT: {{MIN_SIZE_TRAIN: !!python/object/apply:eval ["{}"]}}\n'
    published = "[int(x * 0.1 * 640) for x in range(5, 21)]"
    cfg = merged(write(tmp_path, "a.yaml", text.format(published)))
    assert tuple(64 * x for x in range(5, 21)) == cfg.INPUT.MIN_SIZE_TRAIN
    for other in (published.replace("640", "open('x')"), published.replace("21", "21000")):
        with pytest.raises(ConfigError, match="refused and not run"):
            merged(write(tmp_path, "a.yaml", text.format(other)))


def test_mistakes_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"command line: unknown config key 'MODEL.WEIGHT'; did "
                       r"you mean 'MODEL.WEIGHTS'"):  # fmt: skip
        merged(opts=("MODEL.WEIGHT", "x"))
    with pytest.raises(ConfigError, match="pairs, KEY VALUE"):
        merged(opts=("SEED",))
    with pytest.raises(ConfigError, match="--resume comes after a KEY VALUE pair"):
        merged(opts=("SEED", "1", "--resume"))
    with pytest.raises(ConfigError, match="does not exist"):
        merged("/nonexistent.yaml")


def test_values_are_read_as_detectron2_reads_them(tmp_path: Path) -> None:
    text = "SOLVER: {BASE_LR: 1, STEPS: '(3, 4)', WEIGHT_DECAY_EMBED: 0.0, WEIGHT_DECAY: 1e-4}\n"
    cfg = merged(write(tmp_path, "a.yaml", text), ("OUTPUT_DIR", "2024", "SOLVER.GAMMA", "1e-3"))
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.SOLVER.STEPS == (3, 4)
    assert cfg.SOLVER.WEIGHT_DECAY == 1e-4 and cfg.SOLVER.GAMMA == 1e-3
    assert cfg.OUTPUT_DIR == "2024"


def test_none_only_where_it_is_the_default() -> None:
    opts = ("SOLVER.WEIGHT_DECAY_EMBED", "0.1", "SOLVER.WEIGHT_DECAY_EMBED", "None")
    assert merged(opts=opts).SOLVER.WEIGHT_DECAY_EMBED is None
    for key in ("SOLVER.MAX_ITER", "MODEL.WEIGHTS", "TEST.EVALUATORS", "SOLVER.AMP.ENABLED"):
        with pytest.raises(ConfigError, match=rf"command line: {key} has no value"):
            merged(opts=(key, "None"))


def test_new_data_set_block_from_file_and_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "DATASETS:\n  PANOPTIC:\n    mine: {JSON: a.json}\n")
    cfg = merged(path, ("DATASETS.PANOPTIC.mine.PNG_ROOT", "masks"))
    assert dict(cfg.DATASETS.PANOPTIC.mine) == {"JSON": "a.json", "PNG_ROOT": "masks"}


def test_a_dumped_config_loads_to_itself(tmp_path: Path) -> None:
    first = merged(opts=("DATASETS.PANOPTIC.mine.JSON", "a.json", "SOLVER.BASE_LR", "1e-5"))
    again = merged(write(tmp_path, "config.yaml", first.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(first.dump())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),  # which YAML reads as False
        ("'off'", "off"),
        ("auto", "auto"),
        ("[[0, 3000], [6520, 9780]]", [[0, 3000], [6520, 9780]]),
    ],
)
def test_a_key_that_holds_a_word_or_a_list(tmp_path: Path, text: str, value: object) -> None:
    path = write(tmp_path, "a.yaml", f"MODEL:\n  EOMT:\n    ANNEALING: {text}\n")
    from_file = merged(path)
    dumped = write(tmp_path, "dumped.yaml", from_file.dump())
    from_command_line = merged(opts=("MODEL.EOMT.ANNEALING", text.strip("'")))
    for cfg in (from_file, from_command_line, merged(dumped)):
        assert value == cfg.MODEL.EOMT.ANNEALING
    assert merged(path, ("MODEL.EOMT.ANNEALING", "auto")).MODEL.EOMT.ANNEALING == "auto"
