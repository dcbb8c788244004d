"""List, describe, fetch and verify the models of the zoo, and add your own.

    panoptic-ext zoo list "mask2former*coco"
    panoptic-ext zoo info mask2former_R50_coco
    panoptic-ext zoo get mask2former_R50_coco
    panoptic-ext zoo verify
    panoptic-ext zoo add output/street --name my_street --licence "CC BY 4.0" --output my_street

`get` downloads into $FVCORE_CACHE or ~/.torch/iopath_cache, and goes on where it was stopped.
`add` makes an entry of a training run; of YAML files of entries it says whether they are valid.
$PANOPTIC_EXT_ZOO lists YAML files and folders of entries that count as well.

Exit code: 0; 1 if verify finds another file than the entry's; 2 after an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from panoptic_ext import model_zoo
from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.errors import ConfigError, PanopticExtError, listed, nearest
from panoptic_ext.model_zoo.catalog import ENVIRONMENT, add, find, matching, names
from panoptic_ext.model_zoo.checkpoints import cached_file, is_here, verify
from panoptic_ext.model_zoo.configs import classes_of
from panoptic_ext.model_zoo.entry import TASKS, ZooEntry
from panoptic_ext.model_zoo.from_run import entry_from_run
from panoptic_ext.regular_files import readable_size

NOT_STATED = "not stated"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("zoo", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="a table of the models")
    listing.add_argument(
        "pattern", nargs="?", default="*", help="with * and ?, or a part of a name"
    )
    listing.add_argument("--task", choices=TASKS, default="")
    listing.add_argument("--json", action="store_true", help="all that is known, as JSON")
    info = actions.add_parser("info", help="all that is known of a model")
    info.add_argument("name")
    info.add_argument("--json", action="store_true")
    get = actions.add_parser("get", help="fetch weights, and print where they are")
    get.add_argument("names", nargs="+", metavar="NAME")
    check = actions.add_parser("verify", help="compare files in the cache with their hashes")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: all that are there")
    _add_add_options(actions.add_parser("add", help="make an entry of a run, or check entries"))
    return parser.parse_args(argv)


def _add_add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="output folder of a run; YAML file or folder of entries")
    parser.add_argument("--name", default="", help="of a run's entry, such as my_model_street")
    parser.add_argument("--output", default="", help="folder of a run's entry; default: zoo/NAME")
    parser.add_argument("--licence", default=NOT_STATED, help="of a run's weights")
    parser.add_argument(
        "--no-commercial-use", action="store_true", help="the licence forbids commercial use"
    )
    parser.add_argument(
        "--source", default="own training", help="page on which a run's weights are published"
    )


@command_main(parse_args, output=lambda args: getattr(args, "output", None))
def main(args: argparse.Namespace) -> int:
    """Run the action; returns its exit code."""
    return _ACTIONS[args.action](args)


def _list(args: argparse.Namespace) -> int:
    found = [find(name) for name in matching(args.pattern, args.task)]
    if args.json:
        print(json.dumps([_as_dict(entry) for entry in found], indent=1, ensure_ascii=False))
        return 0
    if not found:
        print(f"no model fits {args.pattern!r}{nearest(args.pattern, names())}")
        return 0
    rows = [_row(entry) for entry in found]
    filled = [key for key in rows[0] if key == "here" or any(row[key] for row in rows)]
    table = [{key: row[key] for key in filled} for row in rows]
    print(tabulate(table, headers="keys", tablefmt="simple", disable_numparse=True))
    number = f"{len(found)} model{'s' if len(found) > 1 else ''}"
    print(f"\n{number}. A licence with ! forbids commercial use; here: on this machine")
    return 0


def _row(entry: ZooEntry) -> dict[str, str]:
    path = cached_file(entry)
    size = entry.size or (os.path.getsize(path) if path else None)
    return {
        "name": entry.name,
        "task": entry.task,
        "data set": entry.data_set,
        "figures": _text(dict(entry.figures)),
        "size": readable_size(size) if size else "",
        "licence": f"{entry.licence}{'' if entry.commercial_use else ' !'}",
        "here": "yes" if is_here(entry) else "",
    }


def _info(args: argparse.Namespace) -> int:
    entry = find(args.name)
    content = _as_dict(entry)
    if entry.data_set:
        classes = classes_of(entry)
        pairs = zip(classes.thing_classes, classes.isthing, strict=True)
        content["classes"] = [{"name": name, "isthing": bool(isthing)} for name, isthing in pairs]
    if args.json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return 0
    content["classes"] = _class_text(content["classes"])
    known = {key: value for key, value in content.items() if value not in ("", None, {})}
    rows = [(key, _text(value)) for key, value in known.items()]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    return 0


def _class_text(classes: list[dict[str, Any]]) -> str:
    things = sum(row["isthing"] for row in classes)
    names = listed((row["name"] for row in classes), 8, show=str)
    return f"{things} things and {len(classes) - things} stuff: {names}" if classes else ""


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _as_dict(entry: ZooEntry) -> dict[str, Any]:
    content = dataclasses.asdict(entry)
    content["weights"] = {entry.weights.kind: entry.weights.value}
    content["classes"] = [
        {"name": category.name, "isthing": category.isthing} for category in entry.classes
    ]
    return {**content, "file": cached_file(entry), "here": is_here(entry)}


def _get(args: argparse.Namespace) -> int:
    for name in [find(name).name for name in args.names]:  # unknown names before any download
        print(f"{name}: {model_zoo.get_checkpoint(name)}", flush=True)
    return 0


def _verify(args: argparse.Namespace) -> int:
    found = [find(name) for name in args.names] or [
        entry for entry in map(find, matching()) if cached_file(entry)
    ]
    if not found:
        print("nothing to verify: no file of the zoo has been downloaded to this machine")
    wrong = 0
    for entry in found:
        try:
            print(f"{entry.name}: {verify(entry)}", flush=True)
        except PanopticExtError as error:
            print(f"{entry.name}: {error}", flush=True)
            wrong += 1
    if found:
        print(f"{len(found) - wrong} of {len(found)} are good")
    return 1 if wrong else 0


def _add(args: argparse.Namespace) -> int:
    path = os.path.abspath(args.path)
    if args.name:
        entry = entry_from_run(
            args.path,
            args.name,
            args.output or os.path.join("zoo", args.name),
            licence=args.licence,
            commercial_use=not args.no_commercial_use,
            source=args.source,
        )
        path = os.path.abspath(entry.path)
        print(f"written: {path}, sha256 {entry.sha256}")
    added = add(path)
    if not added:
        raise ConfigError(
            f"{args.path} holds no entry of a model zoo. To make one of a training run, give its "
            "output folder and a --name"
        )
    print(f"valid: {', '.join(added)}\nto use it: export {ENVIRONMENT}={path}")
    return 0


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "info": _info,
    "get": _get,
    "verify": _verify,
    "add": _add,
}
