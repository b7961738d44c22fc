// Attention's products of bfloat16 by matrix tiles: two tiles of rows meet two panels, so that four
// products share four tile loads.
#pragma once

#include "attention_narrow_inl.h"
#include "gemm_tiles_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kTileWords = kTileDepth / 2;

/// Up to two tiles of rows and two panels of C = A * W (or C += A * W) in words: tile r + 2 p of C
/// is that of row tile r and panel p.
template <class Unit>
struct TileQuad {
  using Sums = float[kAccumulators][kTileRows * kPanel];

  Unit& unit;
  const Gemm& g;
  ptrdiff_t panel;
  bool two_rows, two_panels;

  bool exists(int tile) const { return (tile % 2 == 0 || two_rows) && (tile < 2 || two_panels); }
  const uint16_t* row_tile(ptrdiff_t tile, ptrdiff_t k) const {
    return reinterpret_cast<const uint16_t*>(g.a + tile * kTileRows * g.a_row + k);
  }
  const uint16_t* weight_tile(ptrdiff_t next, ptrdiff_t k) const {
    return reinterpret_cast<const uint16_t*>(g.w + (panel + next) * g.w_panel + k * kPanel);
  }
  void multiply() {
    const ptrdiff_t row_bytes = g.a_row * kWordBytes;
    repeat<kAccumulators>([&](auto tile) { unit.template clear<tile>(); });
    for (ptrdiff_t k = 0; k < g.depth; k += kTileWords) {
      unit.template load<kWeightTile>(weight_tile(0, k));
      unit.template load<kRowsTile>(row_tile(0, k), row_bytes);
      unit.template multiply<0, kRowsTile, kWeightTile>();
      if (two_rows) {
        unit.template load<kRowsTile + 1>(row_tile(1, k), row_bytes);
        unit.template multiply<1, kRowsTile + 1, kWeightTile>();
      }
      if (!two_panels) continue;
      unit.template load<kWeightTile + 1>(weight_tile(1, k));
      unit.template multiply<2, kRowsTile, kWeightTile + 1>();
      if (two_rows) unit.template multiply<3, kRowsTile + 1, kWeightTile + 1>();
    }
  }
  void store(Sums& sums) {
    repeat<kAccumulators>([&](auto tile) {
      if (exists(tile)) unit.template store<tile>(sums[tile]);
    });
  }
  void write(const Sums& sums) const {
    for (int tile = 0; tile < kAccumulators; ++tile) {
      if (exists(tile)) write(sums[tile], tile % 2 * kTileRows, panel + tile / 2);
    }
  }
  void write(const float* sums, ptrdiff_t first, ptrdiff_t at) const {
    const __mmask16 there = lanes(g.columns - at * kPanel);
    for (ptrdiff_t r = 0; r < kTileRows && first + r < g.rows; ++r) {
      float* c = g.c + (first + r) * g.c_row + at * g.c_panel;
      __m512 sum = _mm512_load_ps(sums + r * kPanel);
      if (g.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(there, c), sum);
      _mm512_mask_storeu_ps(c, there, sum);
    }
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
