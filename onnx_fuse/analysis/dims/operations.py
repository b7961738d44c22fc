"""Operations on integers that no polynomial expresses: their text, function and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx_fuse.analysis.dims.monomials import Bound, product_bounds

OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "floordiv": ("({} // {})", lambda a, b: a // b),
    "truncdiv": ("trunc({} / {})", lambda a, b: -(-a // b) if (a < 0) != (b < 0) else a // b),
    "mod": ("({} % {})", lambda a, b: a % b),
    "max": ("max({}, {})", max),
    "min": ("min({}, {})", min),
    "mul": ("({} * {})", lambda a, b: a * b),
}
"""By name: the text of (left, right), and the function."""


def operation_bounds(
    name: str, left: tuple[Bound, Bound], right: tuple[Bound, Bound]
) -> tuple[Bound, Bound]:
    """Return the bounds of an operation's result, given those of its arguments."""
    (low, high), (right_low, right_high) = left, right
    if name == "max":
        return max(low, right_low), max(high, right_high)
    if name == "min":
        return min(low, right_low), min(high, right_high)
    if name == "mul":
        return product_bounds(left, right)
    if right_low < 0:
        return -math.inf, math.inf
    if name == "mod":
        return 0, right_high - 1
    # By divisors from 1 on, the quotient is nearest to 0 for the greatest divisor.
    divisor = max(right_low, 1)
    least: Bound = -math.inf
    if low > -math.inf:
        least = low // divisor if low < 0 else low // right_high
    return least, max(high // divisor, 0) if high < math.inf else math.inf
