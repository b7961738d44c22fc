// Attention's products of bfloat16 by AVX512-BF16: one instruction multiplies 16 pairs.
#pragma once

#include "attention_narrow_inl.h"

namespace onnx_fuse {
namespace {

/// Multiplies pairs of bfloat16.
struct PairStep {
  static Vec accumulate(Vec a, Vec w, Vec sum) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(w.v))};
  }
};

struct LaidPairs {
  template <int R, int P, bool kAlone>
  static constexpr TileFunction tile = multiply_tile<R, P, float, kAlone, PairStep>;
};
constexpr TileTable kLaidPairTiles = make_tiles<LaidPairs>();

struct PairProducts : NarrowForm {
  static constexpr int kRows = kMaxRows;
  static void multiply(const Gemm& g) { onnx_fuse::multiply(g, kLaidPairTiles); }
};

}  // namespace
}  // namespace onnx_fuse
