// Products of bfloat16 weights by an instruction that multiplies pairs, neighbours in depth, and
// adds both products to a float32. A is rounded to bfloat16 beforehand, row by row, so that a pair
// is a word, as the weights' are.
#pragma once

#include "attention_narrow_inl.h"
#include "kernels_inl.h"

namespace onnx_fuse {
namespace {

/// A word of weights is two of bfloat16, and so is one of A.
struct PairsOfBoth {
  static constexpr int kTerms = 1;
  static Vec weights(const float* words, int) { return load(words); }
  template <bool>
  static Vec accumulate(Vec a, Vec w, Vec sum) {
    return dot_pairs(a, w, sum);
  }
};
constexpr TileTable kPairTiles = make_tiles<PairsOfBoth>();

inline bool takes_pairs(const Gemm& g) { return g.precision == Precision::kBf16 && g.w_is_paired; }

/// Words from one packed row to the next: an odd number of cache lines.
inline ptrdiff_t packed_stride(ptrdiff_t depth) {
  return pieces(depth, 2 * 2 * kPanel) * 2 * kPanel + kPanel;
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
      store_bfloat16(to + k, x);
    }
  }
}

void gemm_with_pairs(const Gemm& g) {
  if (!takes_pairs(g)) return gemm(g);
  Gemm words = g;
  words.a_row = packed_stride(g.depth);
  words.a = static_cast<const float*>(g.packed) + g.first_row * words.a_row;
  words.depth = g.depth / 2;
  multiply(words, kPairTiles);
}

/// Attention's products.
struct PairProducts : NarrowForm {
  static constexpr int kRows = kMaxRows;
  static void multiply(const Gemm& g) { onnx_fuse::multiply(g, kPairTiles); }
};

constexpr Kernels make_pair_kernels(const char* name, bool (*available)()) {
  Kernels k = make_kernels(name, available);
  k.gemm = gemm_with_pairs;
  k.packed_floats = packed_pairs;
  k.pack = pack_pairs;
  return with_narrow_attention<PairProducts>(k);
}

}  // namespace
}  // namespace onnx_fuse
