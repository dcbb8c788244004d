"""Draw docs/rooms.svg: the rooms of the package and who imports whom, read from the imports.

    python docs/rooms.py            # writes docs/rooms.svg and docs/rooms-modeling.svg

An arrow runs from a room to one that it imports. Arrows that follow from others are left out: where
A imports B and B imports C, an arrow from A to C would say nothing new. Modules beside the rooms
(errors, atomic, ...) are imported everywhere and not drawn.
"""

from __future__ import annotations

import ast
import html
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "panoptic_ext"

Graph = dict[str, set[str]]
Layers = list[list[str]]

# These hand names on from rooms above their own, for an address that is in use; they need nothing.
HANDS_ON = ("modeling/__init__.py", "engine/predictor.py")

BOX_WIDTH, BOX_HEIGHT = 178, 46  # pixels
COLUMN, ROW = 196, 92  # pixels from box to box
MARGIN = 14  # pixels
POINT = 0.3  # width of a point that an arrow passes through, in boxes


def imports(path: Path) -> Iterator[str]:
    """The modules and names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def top_room(module: str) -> str:
    """The room of a module; meta_arch apart, which alone may import fusion; "" for none."""
    parts = module.split(".")
    if parts[:3] == [PACKAGE, "modeling", "meta_arch"]:
        return "modeling/meta_arch"
    is_room = parts[0] == PACKAGE and len(parts) > 1 and (ROOT / PACKAGE / parts[1]).is_dir()
    return parts[1] if is_room else ""


def modeling_room(module: str) -> str:
    """The room inside modeling/ of a module; "" for none."""
    parts = module.split(".")
    inside = parts[:2] == [PACKAGE, "modeling"] and len(parts) > 2
    return parts[2] if inside and (ROOT / PACKAGE / "modeling" / parts[2]).is_dir() else ""


def read_graph(room_of: Callable[[str], str]) -> Graph:
    """Room -> the rooms that it imports."""
    graph: Graph = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(module)
        if not room or path.relative_to(ROOT / PACKAGE).as_posix() in HANDS_ON:
            continue
        targets = {room_of(target) for target in imports(path)} - {"", room}
        graph.setdefault(room, set()).update(targets)
    return graph


def reachable(graph: Graph, start: str, without: str = "") -> set[str]:
    """What `start` imports, directly or not, `without` the arrow from it to there."""
    seen: set[str] = set()
    todo = [room for room in graph[start] if room != without]
    while todo:
        room = todo.pop()
        if room not in seen:
            seen.add(room)
            todo.extend(graph.get(room, ()))
    return seen


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others."""
    return {
        room: {t for t in targets if t not in reachable(graph, room, without=t)}
        for room, targets in graph.items()
    }


def height(graph: Graph, room: str, above: tuple[str, ...] = ()) -> int:
    """Length of the longest way down from a room.

    Raises:
        ValueError: rooms import each other in a circle; names them.
    """
    if room in above:
        raise ValueError("rooms import each other: " + " -> ".join([*above, room]))
    return max((1 + height(graph, t, (*above, room)) for t in graph.get(room, ())), default=0)


def layered(graph: Graph) -> tuple[Layers, list[tuple[str, str]]]:
    """Rows from top to bottom, and arrows from row to row.

    An arrow that passes a row is cut there by a point, whose name begins with "~".
    """
    rows = {room: height(graph, room) for room in graph}
    top = max(rows.values())
    layers: Layers = [sorted(r for r in graph if rows[r] == top - i) for i in range(top + 1)]
    pieces = []
    for room, targets in sorted(graph.items()):
        for target in sorted(targets):
            last = room
            for level in range(rows[room] - 1, rows[target], -1):
                point = f"~{room}>{target}@{level}"
                layers[top - level].append(point)
                pieces.append((last, point))
                last = point
            pieces.append((last, target))
    return layers, pieces


def places(layers: Layers, pieces: list[tuple[str, str]]) -> dict[str, float]:
    """The column of every box and point: rows in the middle, in the order of what they join."""
    near: dict[str, list[str]] = {}
    for a, b in pieces:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    columns: dict[str, float] = {}
    for row in layers:
        columns.update(_centred(row))
    best, best_length = dict(columns), float("inf")
    for _ in range(20):
        for row in [*layers, *layers[::-1]]:
            wanted = {n: _mean([columns[m] for m in near.get(n, [n])]) for n in row}
            row.sort(key=lambda n: (round(wanted[n], 3), n))
            columns.update(_centred(row))
            length = sum(abs(columns[a] - columns[b]) for a, b in pieces)
            if length < best_length - 1e-6:
                best, best_length = dict(columns), length
    columns = best
    least = min(columns.values())
    return {name: column - least for name, column in columns.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _centred(row: list[str]) -> dict[str, float]:
    """Columns of a row whose middle is at 0; a point takes a part of a box's place."""
    sizes = [POINT if name.startswith("~") else 1.0 for name in row]
    ends = [sum(sizes[: i + 1]) for i in range(len(row))]
    middle = ends[-1] / 2
    return {n: e - s / 2 - middle for n, e, s in zip(row, ends, sizes, strict=True)}


def svg(graph: Graph, words: dict[str, str]) -> str:
    """The picture: boxes with a room's name and a few words, arrows down to what it imports."""
    layers, pieces = layered(reduced(graph))
    columns = places(layers, pieces)
    level = {name: i for i, row in enumerate(layers) for name in row}

    def x(name: str) -> float:
        return MARGIN + BOX_WIDTH / 2 + columns[name] * COLUMN

    def y(name: str) -> float:
        return MARGIN + BOX_HEIGHT / 2 + level[name] * ROW

    lines = [_arrow((x(a), y(a)), (x(b), y(b)), a, b) for a, b in pieces]
    lines += [_box(x(r), y(r), r, words.get(r, "")) for r in sorted(graph)]
    width = max(x(r) for r in columns) + BOX_WIDTH / 2 + MARGIN
    bottom = (len(layers) - 1) * ROW + BOX_HEIGHT + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {bottom}" '
        'font-family="sans-serif" text-anchor="middle">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5c6bc0"/></marker></defs>\n'
        f'<rect width="{width:.0f}" height="{bottom}" fill="#fff"/>\n'
    )
    return head + "\n".join(lines) + "\n</svg>\n"


def _arrow(start: tuple[float, float], end: tuple[float, float], a: str, b: str) -> str:
    (x1, y1), (x2, y2) = start, end
    y1 += 0 if a.startswith("~") else BOX_HEIGHT / 2
    y2 -= 0 if b.startswith("~") else BOX_HEIGHT / 2
    middle = (y1 + y2) / 2
    tip = "" if b.startswith("~") else ' marker-end="url(#tip)"'
    curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{curve}" fill="none" stroke="#5c6bc0" stroke-width="1.5"{tip}/>'


def _box(x: float, y: float, room: str, words: str) -> str:
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" '
        'fill="#e8eaf6" stroke="#3f51b5"/>\n'
        f'<text x="{x:.0f}" y="{y - 3:.0f}" font-size="16" font-weight="bold">'
        f"{html.escape(room)}</text>\n"
        f'<text x="{x:.0f}" y="{y + 15:.0f}" font-size="12.5">{html.escape(words)}</text>'
    )


# What is in each room, in so few words that they fit into its box.
WORDS = {
    "commands": "command lines",
    "prediction": "images in, results out",
    "engine": "training, checkpoints, runs",
    "combine": "files of two models",
    "evaluation": "PQ, mIoU, AP",
    "visualization": "pictures",
    "modeling/meta_arch": "models: wiring only",
    "modeling": "parts of models",
    "fusion": "logits + detections: map",
    "postprocessing": "queries' masks: map",
    "model_zoo": "weights from elsewhere",
    "data": "data sets, mapper, format",
    "config": "keys, YAML files",
}
MODELING_WORDS = {
    "meta_arch": "models: wiring only",
    "backbone": "image: features",
    "pixel_decoder": "features: mask features",
    "transformer_decoder": "features: queries",
    "eomt": "queries in the blocks of a ViT",
    "pmt": "a decoder on a frozen ViT",
    "mask_classification": "targets, matching, losses",
    "semantic_head": "features: semantic logits",
    "proposal_generator": "region proposals",
    "roi_heads": "boxes and masks",
    "transformers_models": "networks of transformers",
    "layers": "operators that all share",
}


def pictures() -> dict[Path, str]:
    """File -> SVG of the two pictures."""
    folder = ROOT / "docs"
    return {
        folder / "rooms.svg": svg(read_graph(top_room), WORDS),
        folder / "rooms-modeling.svg": svg(read_graph(modeling_room), MODELING_WORDS),
    }


def main() -> int:
    for path, text in pictures().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
