"""Panels hold each column of a matrix where the kernel looks for it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_fuse.op import layout

SIZES = st.integers(0, 70)


@given(rows=SIZES, columns=SIZES)
def test_unpack_undoes_pack(rows: int, columns: int) -> None:
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    np.testing.assert_array_equal(layout.unpack(layout.pack(weight), columns), weight)


@given(rows=SIZES, columns=SIZES)
def test_column_is_in_its_panel_and_the_rest_is_zero(rows: int, columns: int) -> None:
    weight = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    panels = layout.pack(weight)
    assert panels.shape == (-(-columns // 16), rows, 16)
    assert panels.flags.c_contiguous
    for column in range(columns):
        np.testing.assert_array_equal(panels[column // 16, :, column % 16], weight[:, column])
    assert np.count_nonzero(panels) == weight.size


@given(pairs=SIZES, columns=SIZES)
def test_rows_of_pairs_lie_side_by_side(pairs: int, columns: int) -> None:
    weight = np.arange(2 * pairs * columns, dtype=np.float32).reshape(2 * pairs, columns)
    paired = layout.pair(layout.pack(weight))
    assert paired.shape == (-(-columns // 16), pairs, 16, 2)
    assert paired.flags.c_contiguous
    for column in range(columns):
        rows = paired[column // 16, :, column % 16]
        np.testing.assert_array_equal(rows.reshape(-1), weight[:, column])
    np.testing.assert_array_equal(layout.unpack(paired, columns), weight)


def test_an_odd_number_of_rows_has_no_pairs() -> None:
    with pytest.raises(ValueError, match=r"^an odd number of rows, 3, has no pairs$"):
        layout.pair(layout.pack(np.ones((3, 16), np.float32)))


@given(columns=SIZES)
def test_weights_side_by_side_pack_as_one(columns: int) -> None:
    first, second = np.ones((3, 16), np.float32), np.full((3, columns), 2, np.float32)
    packed = layout.pack(np.concatenate((first, second), axis=1))
    np.testing.assert_array_equal(packed[:1], layout.pack(first))
    np.testing.assert_array_equal(packed[1:], layout.pack(second))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_dtype_is_kept(dtype: type) -> None:
    assert layout.pack(np.ones((2, 17), dtype)).dtype == dtype


def test_weight_of_another_order_in_memory_packs_the_same() -> None:
    weight = np.arange(40 * 20, dtype=np.float32).reshape(40, 20)
    transposed = np.ascontiguousarray(weight.T).T
    np.testing.assert_array_equal(layout.pack(transposed), layout.pack(weight))


def test_pack_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"2 dimensions, this one has shape \(2, 3, 4\)"):
        layout.pack(np.ones((2, 3, 4)))


@pytest.mark.parametrize("shape", [(2, 3, 16), (1, 3, 8), (3, 16), (2, 3, 16, 2)], ids=str)
def test_unpack_refuses_panels_of_another_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"panels of 16 columns have shape \(1, rows, 16\)"):
        layout.unpack(np.ones(shape), 16)
