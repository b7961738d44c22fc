// Products of bfloat16 by AVX512-BF16: one instruction multiplies 16 pairs of neighbours in depth.
//
// A is rounded to bfloat16 beforehand, row by row, so that a pair is a float's width of memory; a
// pair of the weights' rows is interleaved on the way from memory to the registers.
#pragma once

#include "gemm_inl.h"

namespace onnx_fuse {
namespace {

inline ptrdiff_t pairs_of(ptrdiff_t depth) { return (depth + 1) / 2; }

/// As multiply_tile, where t.a has pairs; bfloat16 rows of a panel follow each other.
template <int R, int P, bool kAlone>
void multiply_pairs(const Tile& t) {
  const float* a[(R + 2) / 3];
  ONNX_FUSE_UNROLL
  for (int g = 0; g < (R + 2) / 3; ++g) a[g] = t.a + 3 * g * t.a_row;
  const uint16_t* w = static_cast<const uint16_t*>(t.w);
  const char* next = static_cast<const char*>(t.next ? t.next : t.w);
  using Call = Calls<R, P, uint16_t, kAlone>;
  ptrdiff_t left = t.depth;
  do {
    const ptrdiff_t piece = left < kPiece ? left : kPiece;
    const bool first = left == t.depth;
    Vec acc[R][P][1];
    ONNX_FUSE_UNROLL
    for (int r = 0; r < R; ++r) {
      ONNX_FUSE_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p][0] = zero();
    }
    ptrdiff_t k = 0, until = Call::inside(piece, left);
    for (ptrdiff_t ahead = Call::bytes;; until = piece, ahead = Call::beyond(t.w_panel)) {
      for (; k < until; k += 2) {
        __m512bh x[P];
        ONNX_FUSE_UNROLL
        for (int p = 0; p < P; ++p)
          x[p] = reinterpret_cast<__m512bh>(load_pair(w + p * t.w_panel, piece - k));
        ONNX_FUSE_UNROLL
        for (int p = 0; p < P; ++p) {
          prefetch_l1(reinterpret_cast<const char*>(w + p * t.w_panel) + ahead);
        }
        if constexpr (!kAlone) {
          prefetch_l2(next);
          next += 2 * kPanel * sizeof *w;
        }
        w += 2 * kPanel;
        ONNX_FUSE_UNROLL
        for (int r = 0; r < R; ++r) {
          const __m512 y = _mm512_set1_ps(a[r / 3][(r % 3) * t.a_row]);
          ONNX_FUSE_UNROLL
          for (int p = 0; p < P; ++p) {
            acc[r][p][0] = {_mm512_dpbf16_ps(acc[r][p][0].v, reinterpret_cast<__m512bh>(y), x[p])};
          }
        }
        ONNX_FUSE_UNROLL
        for (int g = 0; g < (R + 2) / 3; ++g) ++a[g];
      }
      if (Call::last == 0 || k >= piece) break;
    }
    if (first && !t.accumulate) {
      store_sums<false>(acc, t);
    } else {
      store_sums<true>(acc, t);
    }
    left -= piece;
  } while (left > 0);
}

struct Pairs {
  template <int R, int P, bool kAlone>
  static constexpr TileFunction tile = multiply_pairs<R, P, kAlone>;
};
constexpr TileTable kPairTiles = make_tiles<Pairs>();

/// Elements from one packed row to the next: an odd number of cache lines.
inline ptrdiff_t packed_stride(ptrdiff_t depth) {
  return (pairs_of(depth) + 2 * kPanel - 1) / (2 * kPanel) * (2 * kPanel) + kPanel;
}

inline bool takes_pairs(const Gemm& g) {
  return g.precision == Precision::kBf16 && g.w_is_bfloat16 && g.w_row == kPanel;
}

size_t packed_pairs(const Gemm& g) {
  if (!takes_pairs(g)) return packed_floats(g);
  return static_cast<size_t>(g.packed_rows * packed_stride(g.depth));
}

void pack_pairs(const Gemm& g, void* packed, ptrdiff_t row) {
  if (!takes_pairs(g)) return pack(g, packed, row);
  const ptrdiff_t stride = packed_stride(g.depth);
  for (ptrdiff_t r = row; r < g.rows && r < row + kPackRows; ++r) {
    const float* from = g.a + r * g.a_row;
    uint16_t* to = reinterpret_cast<uint16_t*>(static_cast<float*>(packed) + r * stride);
    for (ptrdiff_t k = 0; k < g.depth; k += kLanes) {
      const Vec x = k + kLanes <= g.depth ? load(from + k) : load_some(from + k, g.depth - k, 0);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), to_bfloat16(x));
    }
  }
}

void gemm_with_pairs(const Gemm& g) {
  if (!takes_pairs(g)) return gemm(g);
  Gemm pairs = g;
  pairs.a_row = packed_stride(g.depth);
  pairs.a = static_cast<const float*>(g.packed) + g.first_row * pairs.a_row;
  multiply(pairs, kPairTiles);
}

}  // namespace
}  // namespace onnx_fuse
