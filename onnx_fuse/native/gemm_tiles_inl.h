// Products by matrix tiles of bfloat16, as AMX has them: C (16 x 16) += A (16 x 32) * B (32 x 16).
//
// A float32 number is the sum of three bfloat16 numbers, each the upper half of what the ones
// before it left over: cutting bits off loses nothing, 3 * 8 bits are 24. Of the nine products of
// the parts of A and of W the six largest give an error below that of float32 multiply-adds (hi*hi,
// hi*mid, mid*hi, hi*lo, mid*mid, lo*hi; what is left out is below 2^-24 of the product); three of
// them with two parts each give about 1e-6 (Precision::kBf16x3); bfloat16 weights need one.
//
// The tile unit is a template parameter: `AmxUnit`, or `ScalarUnit`, which does the same with loops
// and stands in for it in tests on machines without AMX, and in the check of AMX before its first
// use.
#pragma once

#include "gemm_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kTileRows = 16;
constexpr int kRowTiles = kPackRows / kTileRows;  // of a column of C that is computed at once

/// Registers: C takes 0 to 3, the parts of W 4 to 6, a part of A 7.
constexpr int kWeightTile = kRowTiles, kRowsTile = 7;

/// A tile of 16 rows of 32 bfloat16; of W: 16 pairs of rows, interleaved.
constexpr ptrdiff_t kTileElements = kTileRows * kTileDepth;
using Bfloat16Tile = uint16_t[kTileElements];

/// What AMX does, in loops.
struct ScalarUnit {
  float c[kRowTiles][kTileRows * kPanel];
  const uint16_t* operand[8];
  ptrdiff_t stride[8];  // elements from one row of an operand to the next

  void begin() {}
  void end() {}
  template <int kTile>
  void clear() {
    memset(c[kTile], 0, sizeof c[kTile]);
  }
  template <int kTile>
  void load(const uint16_t* tile, ptrdiff_t row_bytes = kTileDepth * 2) {
    operand[kTile] = tile;
    stride[kTile] = row_bytes / 2;
  }
  /// Even and odd elements of the depth have sums of their own, which meet C at the end (Intel's
  /// manual, TDPBF16PS).
  template <int kC, int kA, int kB>
  void multiply() {
    for (ptrdiff_t row = 0; row < kTileRows; ++row) {
      float even[kPanel] = {}, odd[kPanel] = {};
      for (ptrdiff_t k = 0; k < kTileDepth; k += 2) {
        const float a = widen(operand[kA][row * stride[kA] + k]);
        const float b = widen(operand[kA][row * stride[kA] + k + 1]);
        const uint16_t* w = operand[kB] + k / 2 * stride[kB];
        for (ptrdiff_t column = 0; column < kPanel; ++column) {
          even[column] += a * widen(w[2 * column]);
          odd[column] += b * widen(w[2 * column + 1]);
        }
      }
      for (ptrdiff_t column = 0; column < kPanel; ++column) {
        c[kC][row * kPanel + column] += even[column] + odd[column];
      }
    }
  }
  template <int kTile>
  void store(float* out) {
    memcpy(out, c[kTile], sizeof c[kTile]);
  }
  static float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
  }
};

/// How many parts A and W have.
struct Parts {
  int a, w;
};
inline Parts parts_of(const Gemm& g) {
  if (g.w_is_bfloat16) return {1, 1};
  return g.precision == Precision::kFp32 ? Parts{3, 3} : Parts{2, 2};
}

/// The upper halves of 16 numbers; `x` keeps what is left over.
inline __m512i take_upper(__m512* x) {
  const __m512i upper =
      _mm512_and_epi32(_mm512_castps_si512(*x), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(upper));
  return upper;
}

/// Packed A: for each 64 rows and each 32 of depth, tiles [row tile][part]. Before them one float
/// for each 64 rows, which is not 0 if an element is not finite: parts of an infinity are NaN.
inline ptrdiff_t depth_tiles(ptrdiff_t depth) { return (depth + kTileDepth - 1) / kTileDepth; }
inline ptrdiff_t row_groups(ptrdiff_t rows) { return (rows + kPackRows - 1) / kPackRows; }
inline ptrdiff_t flags_size(ptrdiff_t rows) { return round_to_panel(row_groups(rows)); }
constexpr ptrdiff_t kTileFloats = kTileElements / 2;

/// AMX takes over where the rows fill a good part of a tile: below, the weights' bytes cost, not
/// products.
constexpr ptrdiff_t kFewestRows = 12;

inline bool takes_tiles(const Gemm& g) {
  const bool narrow = g.w_is_bfloat16 && g.precision == Precision::kBf16;
  const bool split = !g.w_is_bfloat16 && g.precision != Precision::kBf16;
  return g.packed_rows >= kFewestRows && g.depth > 0 && g.w_row == kPanel && (narrow || split);
}

size_t packed_tiles(const Gemm& g) {
  if (!takes_tiles(g)) return packed_floats(g);
  const ptrdiff_t groups = row_groups(g.packed_rows);
  const ptrdiff_t tiles = groups * depth_tiles(g.depth) * kRowTiles * parts_of(g).a;
  return static_cast<size_t>(flags_size(g.packed_rows) + tiles * kTileFloats);
}

inline const float* packed_group(const Gemm& g, const void* packed, ptrdiff_t group) {
  const ptrdiff_t size = depth_tiles(g.depth) * kRowTiles * parts_of(g).a * kTileFloats;
  return static_cast<const float*>(packed) + flags_size(g.packed_rows) + group * size;
}

/// One row's 32 elements from k on as `parts` rows of tiles; returns whether all are finite.
inline bool split_row(const float* a, ptrdiff_t left, int parts, bool nearest, uint16_t* out) {
  alignas(64) float x[kTileDepth] = {};
  const ptrdiff_t n = left < kTileDepth ? left : kTileDepth;
  memcpy(x, a, static_cast<size_t>(n) * sizeof(float));
  __m512 lo = _mm512_load_ps(x), hi = _mm512_load_ps(x + 16);
  const __m512 zeros = _mm512_add_ps(_mm512_sub_ps(lo, lo), _mm512_sub_ps(hi, hi));
  if (nearest) {  // a single part: rounded, ties to even
    const auto rounded = [](__m512 v) {
      const __m512i bits = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(v, v), _mm512_setzero_ps(), 0);
      return _mm512_castsi512_ps(_mm512_mask_blend_epi32(finite, bits, sum));
    };
    lo = rounded(lo);
    hi = rounded(hi);
  }
  for (int part = 0; part < parts; ++part) {
    const __m512i first = _mm512_srli_epi32(take_upper(&lo), 16);
    const __m512i second = _mm512_srli_epi32(take_upper(&hi), 16);
    uint16_t* row = out + part * kTileElements;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + 16), _mm512_cvtepi32_epi16(second));
  }
  return _mm512_cmp_ps_mask(zeros, _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
}

void pack_tiles(const Gemm& g, void* packed, ptrdiff_t row) {
  if (!takes_tiles(g)) return pack(g, packed, row);
  const Parts parts = parts_of(g);
  const ptrdiff_t group = row / kPackRows;
  const ptrdiff_t tile = kTileElements, row_tile = parts.a * tile;
  uint16_t* out = reinterpret_cast<uint16_t*>(const_cast<float*>(packed_group(g, packed, group)));
  bool finite = true;
  for (ptrdiff_t k = 0; k < g.depth; k += kTileDepth, out += kRowTiles * row_tile) {
    for (ptrdiff_t r = 0; r < kPackRows; ++r) {
      uint16_t* to = out + r / kTileRows * row_tile + r % kTileRows * kTileDepth;
      if (row + r < g.rows) {
        const float* from = g.a + (row + r) * g.a_row + k;
        finite &= split_row(from, g.depth - k, parts.a, parts.a == 1, to);
      } else {
        for (int part = 0; part < parts.a; ++part) memset(to + part * tile, 0, kTileDepth * 2);
      }
    }
  }
  static_cast<float*>(packed)[group] = finite ? 0.0f : 1.0f;
}

/// 32 rows of a panel as tiles of pairs, one for each part; rows beyond `left` are zeros. Returns
/// whether all are finite.
inline bool split_weights(const float* w, ptrdiff_t left, int parts, Bfloat16Tile* out) {
  __m512 zeros = _mm512_setzero_ps();
  for (ptrdiff_t k = 0; k < kTileDepth; k += 2) {
    __m512 even = k < left ? _mm512_loadu_ps(w + k * kPanel) : _mm512_setzero_ps();
    __m512 odd = k + 1 < left ? _mm512_loadu_ps(w + (k + 1) * kPanel) : _mm512_setzero_ps();
    zeros = _mm512_add_ps(zeros, _mm512_add_ps(_mm512_sub_ps(even, even), _mm512_sub_ps(odd, odd)));
    for (int part = 0; part < parts; ++part) {
      const __m512i low = _mm512_srli_epi32(take_upper(&even), 16);
      _mm512_storeu_si512(out[part] + k / 2 * kTileDepth, _mm512_or_epi32(low, take_upper(&odd)));
    }
  }
  return _mm512_cmp_ps_mask(zeros, _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
}

/// 32 rows of a bfloat16 panel, interleaved.
inline void pair_weights(const uint16_t* w, ptrdiff_t left, uint16_t* out) {
  for (ptrdiff_t k = 0; k < kTileDepth; k += 2) {
    _mm512_storeu_si512(out + k / 2 * kTileDepth, load_pair(w + k * kPanel, left - k));
  }
}

/// All products of a row tile's parts with the weights' parts that count, smaller ones last.
template <class Unit, int kTile, int kParts>
inline void multiply_parts(Unit& unit, const uint16_t* a) {
  constexpr ptrdiff_t kNext = kTileElements;
  unit.template load<kRowsTile>(a);
  unit.template multiply<kTile, kRowsTile, kWeightTile>();
  if constexpr (kParts >= 2) unit.template multiply<kTile, kRowsTile, kWeightTile + 1>();
  if constexpr (kParts >= 3) unit.template multiply<kTile, kRowsTile, kWeightTile + 2>();
  if constexpr (kParts >= 2) {
    unit.template load<kRowsTile>(a + kNext);
    unit.template multiply<kTile, kRowsTile, kWeightTile>();
  }
  if constexpr (kParts >= 3) {
    unit.template multiply<kTile, kRowsTile, kWeightTile + 1>();
    unit.template load<kRowsTile>(a + 2 * kNext);
    unit.template multiply<kTile, kRowsTile, kWeightTile>();
  }
}

/// Steps of depth whose A (64 rows, all parts) takes at most 32 KiB: it stays in L1 while a block
/// of the depth is multiplied with one panel after the other. Their products are also summed by
/// themselves, for the same reason as in kPiece.
constexpr ptrdiff_t steps_of_block(int parts) { return parts == 1 ? 8 : parts == 2 ? 4 : 2; }

/// Panels that share a block of A, one bit each.
constexpr ptrdiff_t kPanelsAtOnce = 64;

/// Steps that a weight is called to L1 ahead of its use.
constexpr int kStepsAhead = 4;

template <class Unit>
inline void clear_tiles(Unit& unit, int row_tiles) {
  unit.template clear<0>();
  if (row_tiles > 1) unit.template clear<1>();
  if (row_tiles > 2) unit.template clear<2>();
  if (row_tiles > 3) unit.template clear<3>();
}

template <class Unit>
inline void store_tiles(Unit& unit, int row_tiles, float* out) {
  constexpr ptrdiff_t kTile = kTileRows * kPanel;
  unit.template store<0>(out);
  if (row_tiles > 1) unit.template store<1>(out + kTile);
  if (row_tiles > 2) unit.template store<2>(out + 2 * kTile);
  if (row_tiles > 3) unit.template store<3>(out + 3 * kTile);
}

/// What the tiles read and write between registers: weights of two steps, sums of one panel.
template <int kParts>
struct TileMemory {
  alignas(64) Bfloat16Tile weights[2][kParts];
  alignas(64) float sums[kPackRows * kPanel];
};

/// Up to 64 packed rows, a block of the depth and up to kPanelsAtOnce panels: C += A * W, panel by
/// panel, a step of kTileDepth at a time.
///
/// The weights of a step are split while the products of the step before are under way: they must
/// have left for L1 by the time the tiles load them, which stores do in order, after all that
/// stands before them.
template <class Unit, int kParts>
struct TileBlock {
  Unit& unit;
  TileMemory<kParts>& memory;
  const Gemm& g;
  const uint16_t* a;  // packed, of these rows, from `depth` on
  ptrdiff_t row, rows, panel, panels, depth, steps;
  uint64_t not_finite = 0;  // panels with such weights, by bits

  /// A step of the block: its panel, counted from the block's first, and its place in the depth.
  struct Place {
    ptrdiff_t panel = 0, step = 0;
  };
  void advance(Place* p) const {
    if (++p->step < steps) return;
    p->step = 0;
    ++p->panel;
  }
  const void* weights_of(Place p) const {
    const ptrdiff_t at = (depth + p.step * kTileDepth) * kPanel;
    const void* from = weight_at(g, panel + p.panel);
    if constexpr (kParts == 1) return static_cast<const uint16_t*>(from) + at;
    return static_cast<const float*>(from) + at;
  }
  void call(Place p) const {
    const char* from = static_cast<const char*>(weights_of(p));
    constexpr ptrdiff_t kBytes = kTileElements * (kParts == 1 ? 2 : 4), kLine = 64;
    for (ptrdiff_t i = 0; i < kBytes; i += kLine) prefetch_l1(from + i);
  }
  void prepare(Place p, Bfloat16Tile* to) {
    const ptrdiff_t left = g.depth - depth - p.step * kTileDepth;
    if constexpr (kParts == 1) {
      pair_weights(static_cast<const uint16_t*>(weights_of(p)), left, to[0]);
    } else if (!split_weights(static_cast<const float*>(weights_of(p)), left, kParts, to)) {
      not_finite |= uint64_t{1} << p.panel;
    }
  }
  void multiply(Place p, const Bfloat16Tile* w, int row_tiles) {
    constexpr ptrdiff_t kNext = kParts * kTileElements;
    const uint16_t* from = a + p.step * kRowTiles * kNext;
    unit.template load<kWeightTile>(w[0]);
    if constexpr (kParts >= 2) unit.template load<kWeightTile + 1>(w[1]);
    if constexpr (kParts >= 3) unit.template load<kWeightTile + 2>(w[2]);
    multiply_parts<Unit, 0, kParts>(unit, from);
    if (row_tiles > 1) multiply_parts<Unit, 1, kParts>(unit, from + kNext);
    if (row_tiles > 2) multiply_parts<Unit, 2, kParts>(unit, from + 2 * kNext);
    if (row_tiles > 3) multiply_parts<Unit, 3, kParts>(unit, from + 3 * kNext);
  }
  /// C of a panel += sums, or bias + sums where it has none yet.
  void add_to(ptrdiff_t at) const {
    float* c = g.c + row * g.c_row + at * g.c_panel;
    const ptrdiff_t left = g.columns - at * kPanel;
    const __mmask16 there = left >= kPanel ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    __m512 start = _mm512_setzero_ps();
    if (g.bias) start = _mm512_maskz_loadu_ps(there, g.bias + at * kPanel);
    for (ptrdiff_t r = 0; r < rows; ++r, c += g.c_row) {
      const __m512 before = depth > 0 ? _mm512_maskz_loadu_ps(there, c) : start;
      const __m512 sum = _mm512_add_ps(before, _mm512_load_ps(memory.sums + r * kPanel));
      _mm512_mask_storeu_ps(c, there, sum);
    }
  }
  void run() {
    const int row_tiles = static_cast<int>((rows + kTileRows - 1) / kTileRows);
    Place here, coming, called;
    for (int i = 0; i < kStepsAhead; ++i) advance(&called);
    prepare(coming, memory.weights[0]);
    for (int turn = 0; here.panel < panels; turn ^= 1) {
      if (called.panel < panels) call(called);
      advance(&called);
      advance(&coming);
      if (coming.panel < panels) prepare(coming, memory.weights[turn ^ 1]);
      if (here.step == 0) clear_tiles(unit, row_tiles);
      multiply(here, memory.weights[turn], row_tiles);
      if (here.step == steps - 1) {
        store_tiles(unit, row_tiles, memory.sums);
        add_to(panel + here.panel);
      }
      advance(&here);
    }
  }
};

/// Rows and one panel of a product as a product of its own, for the multiply-adds.
inline Gemm part_of(const Gemm& g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel,
                    ptrdiff_t columns) {
  Gemm part = g;
  part.packed = nullptr;
  part.a += row * g.a_row;
  part.w = weight_at(g, panel);
  if (part.bias) part.bias += panel * kPanel;
  part.c += row * g.c_row + panel * g.c_panel;
  part.rows = rows;
  part.columns = columns;
  return part;
}

/// Up to 64 rows and up to kPanelsAtOnce panels.
template <class Unit, int kParts>
void multiply_panels_with_tiles(Unit& unit, TileMemory<kParts>& memory, const Gemm& g,
                                ptrdiff_t row, ptrdiff_t panel) {
  const ptrdiff_t rows = g.rows - row < kPackRows ? g.rows - row : kPackRows;
  const ptrdiff_t left = panels_of(g.columns) - panel;
  const ptrdiff_t panels = left < kPanelsAtOnce ? left : kPanelsAtOnce;
  const ptrdiff_t group = (g.first_row + row) / kPackRows;
  const bool finite_rows = static_cast<const float*>(g.packed)[group] == 0.0f;
  uint64_t not_finite = 0;
  if (kParts > 1 && !finite_rows) {  // one part has infinities of its own
    not_finite = ~uint64_t{0};
  } else {
    const uint16_t* a = reinterpret_cast<const uint16_t*>(packed_group(g, g.packed, group));
    const ptrdiff_t all = depth_tiles(g.depth);
    constexpr ptrdiff_t kStep = kRowTiles * kParts * kTileElements;
    for (ptrdiff_t step = 0; step < all; step += steps_of_block(kParts)) {
      const ptrdiff_t more = all - step;
      const ptrdiff_t steps = more < steps_of_block(kParts) ? more : steps_of_block(kParts);
      TileBlock<Unit, kParts> block{unit, memory, g,      a + step * kStep,  row,
                                    rows, panel,  panels, step * kTileDepth, steps};
      block.run();
      not_finite |= block.not_finite;
    }
  }
  for (ptrdiff_t i = 0; i < panels && not_finite != 0; ++i, not_finite >>= 1) {
    if ((not_finite & 1) == 0) continue;
    const ptrdiff_t columns = g.columns - (panel + i) * kPanel;
    gemm(part_of(g, row, rows, panel + i, columns < kPanel ? columns : kPanel));
  }
}

template <class Unit, int kParts>
void multiply_with_tiles(const Gemm& g) {
  Unit unit;
  TileMemory<kParts> memory;
  unit.begin();
  for (ptrdiff_t row = 0; row < g.rows; row += kPackRows) {
    for (ptrdiff_t panel = 0; panel < panels_of(g.columns); panel += kPanelsAtOnce) {
      multiply_panels_with_tiles<Unit, kParts>(unit, memory, g, row, panel);
    }
  }
  unit.end();
}

template <class Unit>
void gemm_with_tiles(const Gemm& g) {
  if (!takes_tiles(g)) return gemm(g);
  switch (parts_of(g).a) {
    case 1:
      return multiply_with_tiles<Unit, 1>(g);
    case 2:
      return multiply_with_tiles<Unit, 2>(g);
    default:
      return multiply_with_tiles<Unit, 3>(g);
  }
}

}  // namespace
}  // namespace onnx_fuse
