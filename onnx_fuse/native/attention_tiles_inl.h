// Attention's products of bfloat16 by matrix tiles: two tiles of rows meet two panels, so that four
// products share four tile loads.
#pragma once

#include "attention_narrow_inl.h"
#include "gemm_tiles_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kTileWords = kTileDepth / 2;

/// Up to two tiles of rows and two panels of C = A * W (or C += A * W) in words. Registers: C takes
/// 0 to 3, W 4 and 5, A 6 and 7.
template <class Unit>
struct TileQuad {
  static constexpr int kTiles = 4;
  using Sums = float[kTiles][kTileRows * kPanel];

  Unit& unit;
  const Gemm& g;
  ptrdiff_t panel;
  bool two_rows, two_panels;

  const uint16_t* row_tile(ptrdiff_t tile, ptrdiff_t k) const {
    return reinterpret_cast<const uint16_t*>(g.a + tile * kTileRows * g.a_row + k);
  }
  const uint16_t* weight_tile(ptrdiff_t next, ptrdiff_t k) const {
    return reinterpret_cast<const uint16_t*>(g.w + (panel + next) * g.w_panel + k * kPanel);
  }
  void multiply() {
    const ptrdiff_t row_bytes = g.a_row * static_cast<ptrdiff_t>(sizeof(float));
    unit.template clear<0>();
    unit.template clear<1>();
    unit.template clear<2>();
    unit.template clear<3>();
    for (ptrdiff_t k = 0; k < g.depth; k += kTileWords) {
      unit.template load<4>(weight_tile(0, k));
      unit.template load<6>(row_tile(0, k), row_bytes);
      unit.template multiply<0, 6, 4>();
      if (two_rows) {
        unit.template load<7>(row_tile(1, k), row_bytes);
        unit.template multiply<1, 7, 4>();
      }
      if (!two_panels) continue;
      unit.template load<5>(weight_tile(1, k));
      unit.template multiply<2, 6, 5>();
      if (two_rows) unit.template multiply<3, 7, 5>();
    }
  }
  void store(Sums& sums) {
    unit.template store<0>(sums[0]);
    if (two_rows) unit.template store<1>(sums[1]);
    if (two_panels) unit.template store<2>(sums[2]);
    if (two_rows && two_panels) unit.template store<3>(sums[3]);
  }
  void write(const float* sums, ptrdiff_t first, ptrdiff_t at) const {
    const ptrdiff_t left = g.columns - at * kPanel;
    const __mmask16 there = left >= kPanel ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    for (ptrdiff_t r = 0; r < kTileRows && first + r < g.rows; ++r) {
      float* c = g.c + (first + r) * g.c_row + at * g.c_panel;
      __m512 sum = _mm512_load_ps(sums + r * kPanel);
      if (g.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(there, c), sum);
      _mm512_mask_storeu_ps(c, there, sum);
    }
  }
  void write(const Sums& sums) const {
    write(sums[0], 0, panel);
    if (two_rows) write(sums[1], kTileRows, panel);
    if (two_panels) write(sums[2], 0, panel + 1);
    if (two_rows && two_panels) write(sums[3], kTileRows, panel + 1);
  }
};

template <class Unit>
struct TileProducts : NarrowForm {
  static constexpr int kRows = 2 * kTileRows;
  /// What tiles store is not forwarded to loads: it is read while the next products are under way.
  static void multiply(const Gemm& g) {
    Unit unit;
    alignas(64) typename TileQuad<Unit>::Sums sums;
    const auto quad = [&](ptrdiff_t panel) {
      return TileQuad<Unit>{unit, g, panel, g.rows > kTileRows, panel + 1 < panels_of(g.columns)};
    };
    unit.begin();
    ptrdiff_t panel = 0;
    for (; panel < panels_of(g.columns); panel += 2) {
      quad(panel).multiply();
      if (panel > 0) quad(panel - 2).write(sums);
      quad(panel).store(sums);
    }
    unit.end();
    if (panel > 0) quad(panel - 2).write(sums);
  }
};

}  // namespace
}  // namespace onnx_fuse
