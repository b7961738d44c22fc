"""The panel layout of weights: [ceil(columns / 16)][rows][16], as the kernel reads them.

In bfloat16 two rows share a word of four bytes: [ceil(columns / 16)][rows / 2][16][2].
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

# Sixteen float32 are a cache line and an AVX-512 register, and a tile of AMX has sixteen columns.
PANEL = 16


def panel_count(columns: int) -> int:
    """Return how many panels hold this many columns."""
    return -(-columns // PANEL)


def pack(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return (rows, columns) as new panels (ceil(columns / 16), rows, 16), zero columns at the end.

    The dtype is kept, the result is C-contiguous. Column c of row r is at [c // 16][r][c % 16].

    Raises: ValueError if the weight isn't a matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight to pack has 2 dimensions, this one has shape {weight.shape}")
    rows, columns = weight.shape
    panels = np.zeros((panel_count(columns), rows, PANEL), weight.dtype)
    whole = columns // PANEL
    panels[:whole] = weight[:, : whole * PANEL].reshape(rows, whole, PANEL).transpose(1, 0, 2)
    if columns % PANEL:
        panels[whole, :, : columns % PANEL] = weight[:, whole * PANEL :]
    return panels


def pair(panels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return panels (count, rows, 16) as new ones (count, rows / 2, 16, 2), rows side by side.

    Raises: ValueError if the number of rows is odd.
    """
    count, rows, _ = panels.shape
    if rows % 2:
        raise ValueError(f"an odd number of rows, {rows}, has no pairs")
    pairs = panels.reshape(count, rows // 2, 2, PANEL).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(pairs)


def unpack(panels: NDArray[T], columns: int) -> NDArray[T]:
    """Return the (rows, columns) matrix that `pack` was given, be they paired or not.

    Raises: ValueError if these aren't the panels of a matrix with that many columns.
    """
    if panels.ndim == 4:
        count, pairs, width, _ = panels.shape
        panels = panels.transpose(0, 1, 3, 2).reshape(count, 2 * pairs, width)
    if panels.ndim != 3 or panels.shape[2] != PANEL or panels.shape[0] != panel_count(columns):
        expected = f"({panel_count(columns)}, rows, {PANEL})"
        raise ValueError(f"panels of {columns} columns have shape {expected}, not {panels.shape}")
    count, rows, _ = panels.shape
    return panels.transpose(1, 0, 2).reshape(rows, count * PANEL)[:, :columns]
