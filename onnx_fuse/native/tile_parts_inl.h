// The operands of products by matrix tiles: which products they are, and how A and W become tiles
// of bfloat16.
//
// A float32 number is the sum of three bfloat16 numbers, each the upper half of what the ones
// before it left over: cutting bits off loses nothing, 3 * 8 bits are 24. Of the nine products of
// the parts of A and of W the six largest give an error below that of float32 multiply-adds (hi*hi,
// hi*mid, mid*hi, hi*lo, mid*mid, lo*hi; what is left out is below 2^-24 of the product). Three of
// them with two parts each (Precision::kBf16x3) give about 5e-6 if the parts are rounded: what is
// left out of a product is then 2^-18, of either sign, and not 2^-16 of its own sign, which adds up
// (3e-5). bfloat16 weights need one part.
#pragma once

#include "gemm_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kTileRows = 16;
/// Tiles of the rows that are packed together.
constexpr int kGroupTiles = kPackRows / kTileRows;

/// A tile of 16 rows of 32 bfloat16; of W: 16 pairs of rows, interleaved.
constexpr ptrdiff_t kTileElements = kTileRows * kTileDepth;
using Bfloat16Tile = uint16_t[kTileElements];

/// The lanes of a panel that has so many columns, or more.
inline __mmask16 lanes(ptrdiff_t columns) {
  return columns >= kPanel ? 0xffff : static_cast<__mmask16>((1u << columns) - 1);
}

/// Parts of A and of W, as many of each.
inline int parts_of(const Gemm& g) {
  if (g.w_is_paired) return 1;
  return g.precision == Precision::kFp32 ? 3 : 2;
}

/// AMX takes over where products cost more than bytes. A panel's 32 rows take multiply-adds 16
/// cycles for each row of A, and reading them from L3 takes about 220 (bfloat16: 110), which tiles
/// reach with few rows as with many.
constexpr ptrdiff_t kFewestRows = 12, kFewestRowsOfBfloat16 = 8;

inline bool takes_tiles(const Gemm& g) {
  if (g.depth == 0 || g.w_row != kPanel || g.accumulate) return false;
  if (g.w_is_paired) {
    return g.precision == Precision::kBf16 && g.packed_rows >= kFewestRowsOfBfloat16;
  }
  return g.precision != Precision::kBf16 && g.packed_rows >= kFewestRows;
}

/// Packed A: for each 64 rows and each 32 of depth, tiles [row tile][part], as many as there are
/// rows for. Before them one float for each 64 rows, which is not 0 if an element is not finite:
/// parts of an infinity are NaN.
inline ptrdiff_t depth_tiles(ptrdiff_t depth) { return pieces(depth, kTileDepth); }
inline ptrdiff_t row_tiles(ptrdiff_t rows) { return pieces(rows, kTileRows); }
inline ptrdiff_t row_groups(ptrdiff_t rows) { return pieces(rows, kPackRows); }
inline ptrdiff_t flags_size(ptrdiff_t rows) { return round_to_panel(row_groups(rows)); }

/// Elements of a step of depth of a group of 64 rows, or of those that are left.
inline ptrdiff_t packed_step(const Gemm& g, ptrdiff_t group) {
  const ptrdiff_t left = row_tiles(g.packed_rows) - group * kGroupTiles;
  return smaller(left, kGroupTiles) * parts_of(g) * kTileElements;
}

size_t packed_tiles(const Gemm& g) {
  if (!takes_tiles(g)) return packed_floats(g);
  const ptrdiff_t tiles = row_tiles(g.packed_rows) * depth_tiles(g.depth) * parts_of(g);
  return static_cast<size_t>(flags_size(g.packed_rows) + tiles * kTileElements / 2);
}

inline const uint16_t* packed_group(const Gemm& g, const void* packed, ptrdiff_t group) {
  const ptrdiff_t whole = kGroupTiles * parts_of(g) * kTileElements * depth_tiles(g.depth);
  const float* tiles = static_cast<const float*>(packed) + flags_size(g.packed_rows);
  return reinterpret_cast<const uint16_t*>(tiles) + group * whole;
}

/// What a number's upper half becomes before it is taken.
enum class Cut { kDown, kNearest, kNearestEven };

inline constexpr Cut cut_of(int parts) {
  return parts == 3 ? Cut::kDown : parts == 2 ? Cut::kNearest : Cut::kNearestEven;
}

/// The number, of which the upper half is its part; the lower half is anything.
template <Cut kCut>
inline __m512i upper_half_cut(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  if constexpr (kCut == Cut::kDown) return bits;
  if constexpr (kCut == Cut::kNearest) return _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
  return round_to_upper_half({x});
}
/// What the part leaves over: not finite if x is not, or if its part is not.
inline __m512 rest_of(__m512 x, __m512i rounded) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_epi32(rounded, upper)));
}
inline bool is_finite(__m512 x) {
  const __m512 zeros = _mm512_sub_ps(x, x);
  return _mm512_cmp_ps_mask(zeros, zeros, _CMP_EQ_OQ) == 0xffff;
}

/// One row's 32 elements from k on as rows of tiles; returns whether all are finite.
template <int kParts>
inline bool split_row(const float* a, ptrdiff_t left, uint16_t* out) {
  alignas(64) float x[kTileDepth] = {};
  const ptrdiff_t n = smaller(left, kTileDepth);
  memcpy(x, a, static_cast<size_t>(n) * sizeof(float));
  bool finite = true;
  for (ptrdiff_t half = 0; half < 2; ++half) {
    __m512 rest = _mm512_load_ps(x + half * 16);
    for (int part = 0; part < kParts; ++part) {
      const __m512i rounded = upper_half_cut<cut_of(kParts)>(rest);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + part * kTileElements + half * 16),
                          _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
      rest = rest_of(rest, rounded);
      if (part == 0) finite &= is_finite(rest);
    }
  }
  return finite;
}

template <int kParts>
void pack_parts(const Gemm& g, void* packed, ptrdiff_t row) {
  const ptrdiff_t group = row / kPackRows, step = packed_step(g, group);
  constexpr ptrdiff_t kRowTile = kParts * kTileElements;
  const ptrdiff_t rows = step / kRowTile * kTileRows;
  uint16_t* out = const_cast<uint16_t*>(packed_group(g, packed, group));
  bool finite = true;
  for (ptrdiff_t k = 0; k < g.depth; k += kTileDepth, out += step) {
    for (ptrdiff_t r = 0; r < rows; ++r) {
      uint16_t* to = out + r / kTileRows * kRowTile + r % kTileRows * kTileDepth;
      if (row + r < g.rows) {
        finite &= split_row<kParts>(g.a + (row + r) * g.a_row + k, g.depth - k, to);
      } else {
        for (int part = 0; part < kParts; ++part) {
          memset(to + part * kTileElements, 0, kTileDepth * sizeof *to);
        }
      }
    }
  }
  static_cast<float*>(packed)[group] = finite ? 0.0f : 1.0f;
}

void pack_tiles(const Gemm& g, void* packed, ptrdiff_t row) {
  if (!takes_tiles(g)) return pack(g, packed, row);
  switch (parts_of(g)) {
    case 1:
      return pack_parts<1>(g, packed, row);
    case 2:
      return pack_parts<2>(g, packed, row);
    default:
      return pack_parts<3>(g, packed, row);
  }
}

/// Two rows of a panel, of which `left` exist, as a row of pairs in the tile of each part. Adds to
/// `rests` what the first parts leave over: finite, as long as the rows are.
template <int kParts>
inline void split_pair(const float* w, ptrdiff_t left, ptrdiff_t pair, Bfloat16Tile* out,
                       __m512* rests) {
  __m512 even = left > 0 ? _mm512_loadu_ps(w) : _mm512_setzero_ps();
  __m512 odd = left > 1 ? _mm512_loadu_ps(w + kPanel) : _mm512_setzero_ps();
  for (int part = 0; part < kParts; ++part) {
    constexpr __mmask32 kUpperHalves = 0xaaaaaaaa;
    const __m512i even_part = upper_half_cut<cut_of(kParts)>(even);
    const __m512i odd_part = upper_half_cut<cut_of(kParts)>(odd);
    const __m512i low = _mm512_srli_epi32(even_part, 16);
    _mm512_storeu_si512(out[part] + pair * kTileDepth,
                        _mm512_mask_blend_epi16(kUpperHalves, low, odd_part));
    if (part == kParts - 1) break;
    even = rest_of(even, even_part);
    odd = rest_of(odd, odd_part);
    if (part == 0) *rests = _mm512_add_ps(*rests, _mm512_add_ps(even, odd));
  }
}

}  // namespace
}  // namespace onnx_fuse
