"""Options of a rewrite: given ones before the environment before the defaults, read once, here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Integral
from typing import Any, Final

from onnx_fuse.errors import InvalidOption
from onnx_fuse.op.schema import PRECISIONS, Precision

THRESHOLD_VARIABLE: Final = "RLX_FUSE_ATTN_THRESHOLD"
DEFAULT_THRESHOLD: Final = 64
_MOST_DIGITS: Final = 100  # Python reads no number of some thousands of them
# Extents by symbol name; pairs, so that a name given twice can be refused.
Bindings = Mapping[str, int] | Sequence[tuple[str, int]]


class Unset(Enum):
    """The type of `UNSET`: an option was not given (None has a meaning of its own)."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


def parse_threshold(text: str, source: str) -> int | None:
    """Return the threshold that `text` states: a non-negative integer, or None for "none".

    `source` is the name of the option or variable, for the error message.

    Raises: InvalidOption if it is neither.
    """
    word = text.strip()
    if word.lower() == "none":
        return None
    if not (word.isascii() and word.isdigit()):
        raise InvalidOption(f"{source}={text!r}: expected a non-negative integer or 'none'")
    if len(word) > _MOST_DIGITS:
        raise InvalidOption(f"{source} has {len(word)} digits: 'none' sets no limit")
    return int(word)


def _plain(value: Any) -> Any:
    """Return a number of any integer type, numpy's say, as an int; all else as it is."""
    is_number = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_number else value


def _check_int(source: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{source}={value!r}: expected an integer of at least {least}")


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    threshold: largest `batch * seq` of a block that is fused, inclusive; 0 fuses none, None fuses
    all. batch, seq: extents that bind the graph inputs' dynamic batch and sequence dims. dims:
    further (symbol name, extent) bindings, sorted by name. fallback: whether the fused model
    carries a standard-ONNX body for runtimes without the library. precision: arithmetic of the
    matrix products, one of `PRECISIONS`.

    Raises: InvalidOption for a value out of range.
    """

    threshold: int | None = DEFAULT_THRESHOLD
    batch: int | None = None
    seq: int | None = None
    dims: tuple[tuple[str, int], ...] = ()
    fallback: bool = True
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_int("threshold", self.threshold, 0)
        for source, extent in (("batch", self.batch), ("seq", self.seq)):
            if extent is not None:
                _check_int(source, extent, 1)
        seen: dict[str, int] = {}
        for name, extent in self.dims:
            if not isinstance(name, str) or not name:
                raise InvalidOption(f"dim {name!r}: expected the name of a symbolic dimension")
            _check_int(f"dim {name}", extent, 1)
            if seen.setdefault(name, extent) != extent:
                raise InvalidOption(f"dim {name}={extent}: also given as {seen[name]}")
        if self.precision not in PRECISIONS:
            raise InvalidOption(
                f"precision={self.precision!r}: expected one of {', '.join(PRECISIONS)}"
            )

    @staticmethod
    def resolve(
        *,
        threshold: int | str | Unset | None = UNSET,
        batch: int | None = None,
        seq: int | None = None,
        dims: Bindings | None = None,
        fallback: bool = True,
        precision: Precision = "fp32",
        environ: Mapping[str, str] | None = None,
    ) -> Options:
        """Return the options that hold: a given threshold before the environment's before 64.

        A threshold given as text is read as `parse_threshold` does. `environ` stands for
        `os.environ`.

        Raises: InvalidOption naming the option or the environment variable.
        """
        if isinstance(threshold, Unset):
            text = (os.environ if environ is None else environ).get(THRESHOLD_VARIABLE, "")
            threshold = parse_threshold(text, THRESHOLD_VARIABLE) if text else DEFAULT_THRESHOLD
        elif isinstance(threshold, str):
            threshold = parse_threshold(threshold, "threshold")
        pairs = dims.items() if isinstance(dims, Mapping) else (dims or ())
        try:
            bound = [(name, _plain(extent)) for name, extent in pairs]
        except (TypeError, ValueError) as error:
            raise InvalidOption(f"dims={dims!r}: expected extents by symbol name") from error
        return Options(
            _plain(threshold),
            _plain(batch),
            _plain(seq),
            tuple(sorted(bound, key=lambda pair: str(pair[0]))),
            fallback,
            precision,
        )
