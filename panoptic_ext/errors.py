"""Errors of panoptic_ext: what was found, what was expected and how to mend it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.utils.registry import Registry
__all__ = [
    "NOT_JSON",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DownloadError",
    "EvaluationError",
    "ImageError",
    "MemoryNeededError",
    "NonFiniteLossError",
    "PanopticExtError",
    "UnreadableFileError",
    "check_known",
    "listed",
    "look_up",
    "nearest",
    "quoted",
    "shortened",
    "unknown",
]

NOT_JSON = (ValueError, RecursionError)
"""Errors of `json.load` for text that is no JSON, is not UTF-8 or is nested too deeply."""

_MAX_QUOTED_DEPTH = 4
_MAX_QUOTED_ITEMS = 8
_MAX_QUOTED_DIGITS = 40
_MAX_LINE_LENGTH = 1500  # three of the longest usual paths, and the words around them
_MAX_COMPARED_LENGTH = 200
_MAX_KNOWN_NAMES = 40  # existing names in the message about an unknown one
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}")}


class PanopticExtError(ValueError):
    """Base of every error that a user can mend; command lines print it without a traceback.

    Each line of the message is cut to a bounded length, whatever it quotes.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(_within_lines(arg) if isinstance(arg, str) else arg for arg in args))


class DatasetError(PanopticExtError):
    """A data set's files, JSON or registration are not as documented."""


class UnreadableFileError(DatasetError):
    """An image or label file is missing or damaged; DATALOADER.SKIP_CORRUPT skips it."""


class ConfigError(PanopticExtError):
    """A config file, key or value cannot be used."""


class EvaluationError(PanopticExtError):
    """Predictions and ground truth cannot be compared."""


class ImageError(PanopticExtError):
    """An image that was given to a Predictor cannot be used."""


class CheckpointError(PanopticExtError):
    """A checkpoint cannot be read, trusted or fitted to the model."""


class DownloadError(PanopticExtError):
    """A file cannot be downloaded; the message has its address and the place where it belongs."""


class MemoryNeededError(PanopticExtError):
    """An image needs more memory than there is."""


class NonFiniteLossError(PanopticExtError, FloatingPointError):
    """A loss became infinite or NaN during training."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint at the most similar name, to append to an error message.

    Args:
        name: the unknown name that was found.
        candidates: the names that exist.

    Returns:
        "; did you mean 'x'?" for the candidate most similar to `name`; "" if none is similar.
    """
    names = sorted({str(c) for c in candidates})
    lowered: dict[str, str] = {}
    for candidate in names:
        lowered.setdefault(candidate.lower(), candidate)
    # Only the beginning of a long name is compared, because the time grows with the length.
    beginning = str(name)[:_MAX_COMPARED_LENGTH].lower()
    matches = difflib.get_close_matches(beginning, list(lowered), n=1, cutoff=0.5)
    return f"; did you mean {lowered[matches[0]]!r}?" if matches else ""


def unknown(
    what: str, value: Any, known: Iterable[Any], *, mend: str = "", limit: int = _MAX_KNOWN_NAMES
) -> str:
    """The message about a name that does not exist.

    Args:
        what: the key or the kind of the name, e.g. "SOLVER.OPTIMIZER" or "image id".
        value: the name that was found.
        known: the names that exist.
        mend: what else the user can do; it ends the message.
        limit: number of known names in the message; 0 lists none, where they would not help.

    Returns:
        "unknown X 'y'; did you mean 'z'? known: w, z; <mend>", without the question if no name is
        similar.
    """
    names = [str(name) for name in known]
    hint = nearest(str(value), names)
    shown = listed((name or "''" for name in names), limit, show=str) or "none"
    more = "; ".join([f"known: {shown}"] * bool(limit) + [mend] * bool(mend))
    text = f"unknown {what} {quoted(value)}{hint}"
    return f"{text}{' ' if hint else '; '}{more}" if more else text


def check_known(
    what: str, value: Any, known: Iterable[Any], *, error: type[ValueError] = ConfigError
) -> None:
    """Raise `error` with the message of `unknown`, unless `value` is one of `known`."""
    names = tuple(known)  # no set, because `value` may be unhashable, such as a list
    if value not in names:
        raise error(unknown(what, value, names))


def look_up(registry: Registry, key: str, name: str) -> Any:
    """The function or class that a registry holds under a name.

    Args:
        registry: a registry of Detectron2 or of this package.
        key: the config key that holds the name.
        name: the value of that key.

    Raises:
        ConfigError: nothing is registered under that name.
    """
    if name not in registry:
        raise ConfigError(unknown(key, name, sorted(known for known, _ in registry)))
    return registry.get(name)


def quoted(value: Any, most: int = 100) -> str:
    """`repr` of a user's value for an error message, of bounded length.

    Args:
        value: any value.
        most: the largest number of characters of the result.

    Returns:
        The same as `repr` if that is short; else its beginning and end, with "..." in between.
    """
    # `repr` itself fails or takes long for what a file can hold: a list nested a thousand levels
    # deep, text of a megabyte, an integer of thousands of digits.
    return shortened(_bounded_repr(value, most, _MAX_QUOTED_DEPTH), most)


def listed(
    values: Iterable[Any],
    limit: int = 5,
    *,
    separator: str = ", ",
    show: Callable[[Any], str] = quoted,
) -> str:
    """The first few values and the number of the others: "'a', 'b' and 7 more".

    Args:
        values: any values.
        limit: how many values are shown.
        separator: text between two values, e.g. "; " for values that contain commas.
        show: value -> its text.
    """
    values = list(values)
    text = separator.join(show(value) for value in values[:limit])
    if len(values) <= limit:
        return text
    before_and = " " if separator == ", " else separator
    return f"{text}{before_and}and {len(values) - limit} more"


def shortened(text: str, most: int = 80) -> str:
    """`text` cut to at most `most` characters, with "..." in place of its middle."""
    if len(text) <= most:
        return text
    head = (most - 3 + 1) // 2
    return f"{text[:head]}...{text[len(text) - (most - 3 - head) :]}"


def _within_lines(text: str) -> str:
    return "\n".join(shortened(line, _MAX_LINE_LENGTH) for line in text.split("\n"))


def _bounded_repr(value: Any, most: int, depth: int) -> str:
    if isinstance(value, (str, bytes)) and len(value) > 2 * most:
        return repr(value[:most])[:-1] + repr(value[-most:]).lstrip("b")[1:]
    if type(value) is int and value.bit_length() > 3 * _MAX_QUOTED_DIGITS:
        return f"<an integer of {value.bit_length()} bits>"
    if type(value) in _BRACKETS:
        opening, closing = _BRACKETS[type(value)]
        if depth == 0 and value:
            return f"{opening}...{closing}"
        items = itertools.islice(value.items() if type(value) is dict else value, _MAX_QUOTED_ITEMS)
        parts = [_bounded_item(item, type(value) is dict, most, depth - 1) for item in items]
        parts += ["..."] * (len(value) > _MAX_QUOTED_ITEMS)
        comma = "," if type(value) is tuple and len(value) == 1 else ""
        return f"{opening}{', '.join(parts)}{comma}{closing}"
    try:
        text = repr(value)
        return " ".join(text.split()) if "\n" in text else text  # arrays and tensors have lines
    except Exception:  # a user's `__repr__` can raise anything, and must not hide the error
        return f"<{type(value).__name__}>"


def _bounded_item(item: Any, is_pair: bool, most: int, depth: int) -> str:
    if not is_pair:
        return _bounded_repr(item, most, depth)
    key, value = item
    return f"{_bounded_repr(key, most, depth)}: {_bounded_repr(value, most, depth)}"
