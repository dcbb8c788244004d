"""Config files and `KEY VALUE` pairs, read as data and never run.

Detectron2's own reader falls back to `yaml.unsafe_load`, which executes `!!python` tags. This
reader refuses every tag that is not plain YAML (`plain_yaml` accepts the one expression that
published files have). It records the file and line of each key. An error for an unknown key names
the nearest known one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode as CN

from panoptic_ext.config.detectron2_main import check_main_default, lacks
from panoptic_ext.config.plain_yaml import MAX_DEPTH, PlainLoader
from panoptic_ext.config.shipped import find_config, shipped_config
from panoptic_ext.config.values import Setting, coerce, decode
from panoptic_ext.errors import ConfigError, nearest, quoted, shortened
from panoptic_ext.regular_files import CONFIG_FILE, file_problem

__all__ = ["COMMAND_LINE", "Setting", "merge_settings", "read_file", "read_mapping", "read_opts"]

logger = logging.getLogger(__name__)

BASE_KEY = "_BASE_"
COMMAND_LINE = "the command line"
MAX_BASES = 50  # files in one chain of _BASE_
_TOP_LEVEL = {"config file": "'MODEL:' and 'SOLVER:'"}


def read_file(path: str) -> list[Setting]:
    """Read the settings of a YAML file and of the files that its `_BASE_` names.

    Returns them in the order in which they apply: later settings override earlier ones.

    Args:
        path: a YAML file, as `find_config` finds it; `_BASE_` in it is one path or a list of
            paths, relative to that file or else to the shipped files.

    Raises:
        ConfigError: missing file, invalid YAML, a refused tag, a key given twice, a `_BASE_` cycle.
    """
    return _read_chain(find_config(path), ())


def read_opts(opts: Sequence[str]) -> list[Setting]:
    """Read settings from the `KEY VALUE ...` end of a command line.

    Raises:
        ConfigError: a key without a value, or an option among the pairs.
    """
    opts = list(opts)
    if opts and opts[0] == "--":
        opts = opts[1:]
    flags = [o for o in opts if re.match("--[A-Za-z]", str(o))]
    if flags:
        raise ConfigError(
            f"{shortened(flags[0])} comes after a KEY VALUE pair; put options before the first pair"
        )
    if len(opts) % 2:
        raise ConfigError(
            f"config options come in pairs, KEY VALUE; found an odd number of them: "
            f"{shortened(' '.join(map(str, opts)), 300)}. Give the last key a value (quote values "
            "with spaces)."
        )
    return [
        Setting(str(key), value, COMMAND_LINE)
        for key, value in zip(opts[0::2], opts[1::2], strict=True)
    ]


def merge_settings(cfg: CN, settings: Sequence[Setting]) -> dict[str, str]:
    """Put settings into `cfg`, in place, later ones over earlier ones.

    Args:
        cfg: an unfrozen config that has every known key.
        settings: from `read_file` and `read_opts`.

    Returns:
        Key -> source of every key that was given.

    Raises:
        ConfigError: unknown key or wrong type.
    """
    settings = _without_main_keys(cfg, settings)
    optional = {key for key, value in _all_items(cfg, "") if value is None}
    for setting in settings:
        _merge_one(cfg, setting, optional)
    return {setting.key: setting.source for setting in settings}


def _without_main_keys(cfg: CN, settings: Sequence[Setting]) -> list[Setting]:
    """Leave out keys that only Detectron2 main has, if v0.6 behaves the same without them."""
    main_keys = {s.key: s for s in settings if lacks(cfg, s.key)}
    # Of a key that is given several times, only the last value counts: `main_keys` holds that one.
    for setting in main_keys.values():
        check_main_default(setting.key, decode(setting.value), setting.source)
    if main_keys:
        logger.warning(
            "Left out %d keys of Detectron2 main, which are at its defaults and v0.6 lacks: %s",
            len(main_keys),
            ", ".join(main_keys),
        )
    return [setting for setting in settings if setting.key not in main_keys]


def _read_chain(path: str, named_by: tuple[str, ...]) -> list[Setting]:
    """Settings of a file behind those of its bases; `named_by` is the chain of files above it."""
    real = os.path.realpath(path)
    if real in named_by:
        chain = " -> ".join((*named_by[named_by.index(real) :], real))
        raise ConfigError(f"{BASE_KEY} runs in a circle: {chain}; remove one of these {BASE_KEY}")
    if len(named_by) >= MAX_BASES:
        raise ConfigError(f"{path}: more than {MAX_BASES} files name each other by {BASE_KEY}")
    by = f", named by {BASE_KEY} of {named_by[-1]}," if named_by else ""
    content, lines = read_mapping(path, by=by)
    settings: list[Setting] = []
    bases = content.pop(BASE_KEY, None)
    for base in bases if isinstance(bases, list) else [bases] * (bases is not None):
        if not isinstance(base, str):
            raise ConfigError(f"{path}: {BASE_KEY} must name a file, found {quoted(base)}")
        name = os.path.expanduser(base)
        base = os.path.join(os.path.dirname(path), name)
        if not os.path.lexists(base) and not os.path.isabs(name):
            # A file outside a checkout names the shipped files as the command line does.
            base = shipped_config(name) or base
        settings.extend(_read_chain(base, (*named_by, real)))
    in_base = bool(named_by)
    settings.extend(s._replace(in_base=in_base) for s in _flatten(content, "", path, lines))
    return settings


def read_mapping(
    path: str, *, what: str = "config file", by: str = ""
) -> tuple[dict, dict[str, str]]:
    """Read a YAML file of keys and values as plain data.

    Args:
        path: the file.
        what: the kind of the file, for messages.
        by: who names the file, for messages.

    Returns:
        Its content, and "file:line" of each full key, such as "MODEL.WEIGHTS".

    Raises:
        ConfigError: missing file, invalid YAML, a refused tag, a key given twice, or no keys.
    """
    problem = file_problem(path, CONFIG_FILE)
    if problem:
        raise ConfigError(f"{what} {shortened(path, 300)}{by} {problem}")
    try:
        with open(path, encoding="utf-8") as stream:
            loader = PlainLoader(stream)
            try:
                return _construct(loader, path, what)
            finally:
                loader.dispose()
    except OSError as error:
        raise ConfigError(
            f"{what} {path}{by} cannot be read: {error.strerror or error}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from error


def _construct(loader: PlainLoader, path: str, what: str) -> tuple[dict, dict[str, str]]:
    root = loader.get_single_node()
    if root is None:
        return {}, {}
    # Duplicates are checked before construct_document merges the keys of `<<` into a block, after
    # which they could not be distinguished from the block's own.
    _check_duplicates(loader, root, "", path, set())
    content = loader.construct_document(root)
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{what} {path} holds a {type(content).__name__}, expected keys such as "
            f"{_TOP_LEVEL.get(what, 'name:')} at its top level"
        )
    return content, dict(_key_lines(root, "", path))


def _yaml_message(path: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark is not None else path
    problem = getattr(error, "problem", None) or str(error)
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in problem:
        return (
            f"{where}: {problem}; it was refused and not run, because a config is data and a tag "
            "can run code. Write the value itself, e.g. [1, 2] or '(1, 2)' for a tuple"
        )
    return f"{where}: invalid YAML: {problem}"


def _check_duplicates(
    loader: PlainLoader, node: yaml.Node, prefix: str, path: str, visited: set[int]
) -> None:
    """Warn of a key that a block gives twice with the same value, and refuse differing values."""
    if id(node) in visited or isinstance(node, yaml.ScalarNode):
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_duplicates(loader, item, prefix, path, visited)
        return
    first: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # construct_document raises its own error for such a key
        key = f"{prefix}{key_node.value}"
        _check_duplicates(loader, value_node, f"{key}.", path, visited)
        if key_node.value in first and key_node.value != "<<":
            _compare_duplicates(loader, key, path, first[key_node.value], (key_node, value_node))
        first[key_node.value] = (key_node, value_node)


def _compare_duplicates(
    loader: PlainLoader,
    key: str,
    path: str,
    first: tuple[yaml.Node, yaml.Node],
    second: tuple[yaml.Node, yaml.Node],
) -> None:
    old, new = (loader.construct_object(value, deep=True) for _, value in (first, second))
    line, again = (key_node.start_mark.line + 1 for key_node, _ in (first, second))
    where = f"{path}:{again}: {key} is given twice in one block, before in line {line}"
    if decode(old) == decode(new):
        logger.warning("%s, with the same value; one of the two lines can go", where)
        return
    raise ConfigError(
        f"{where}, and the values differ: {quoted(old)} and {quoted(new)}; remove one of the two, "
        "or join them where both are blocks"
    )


def _key_lines(node: yaml.Node, prefix: str, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, f"{path}:{key_node.start_mark.line + 1}"
        yield from _key_lines(value_node, f"{key}.", path)


def _flatten(content: dict, prefix: str, path: str, lines: dict[str, str]) -> Iterator[Setting]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{key}.", path, lines)
        else:
            yield Setting(key, value, lines.get(key, path), path)


def _merge_one(cfg: CN, setting: Setting, optional: set[str]) -> None:
    if setting.key == BASE_KEY:
        raise ConfigError(f"{BASE_KEY} works in files only, found on {setting.source}")
    *parents, leaf = setting.key.split(".")
    if len(parents) > MAX_DEPTH:
        raise ConfigError(f"{setting.source}: unknown config key {quoted(setting.key)}")
    node = cfg
    for name in parents:
        if name not in node:
            if not node.is_new_allowed():
                raise ConfigError(_unknown(cfg, node, name, setting))
            node[name] = CN(new_allowed=True)
        node = node[name]
        if not isinstance(node, CN):
            raise ConfigError(_unknown(cfg, node, leaf, setting))
    if leaf not in node and not node.is_new_allowed():
        raise ConfigError(_unknown(cfg, node, leaf, setting))
    value = decode(setting.value)
    if leaf not in node:
        node[leaf] = CN(new_allowed=True) if value == {} else value
    elif isinstance(node[leaf], CN):
        if value not in ({}, None):
            raise ConfigError(
                f"{setting.source}: {setting.key} is a block of keys, found {quoted(value)}; "
                f"give one of its keys, e.g. {setting.key}.{next(iter(node[leaf]), 'NAME')}"
            )
    elif value is not None or setting.key not in optional:
        node[leaf] = coerce(value, node[leaf], setting)
    else:
        node[leaf] = None


def _unknown(cfg: CN, node: Any, name: str, setting: Setting) -> str:
    known = [key for key, _ in _all_items(cfg, "")]
    hint = ""
    if isinstance(node, CN):
        prefix = setting.key[: setting.key.rindex(name)] if name in setting.key else ""
        hint = nearest(name, list(node))
        hint = hint.replace("mean '", f"mean '{prefix}") if hint else ""
    hint = hint or nearest(setting.key, known)
    return f"{setting.source}: unknown config key {quoted(setting.key, 200)}{hint}"


def _all_items(node: CN, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, CN):
            yield from _all_items(value, f"{prefix}{name}.")
