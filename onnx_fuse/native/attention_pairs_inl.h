// Attention's products of bfloat16 by AVX512-BF16: one instruction multiplies 16 pairs.
#pragma once

#include "attention_narrow_inl.h"
#include "gemm_pairs_inl.h"

namespace onnx_fuse {
namespace {

struct PairProducts : NarrowForm {
  static constexpr int kRows = kMaxRows;
  static void multiply(const Gemm& g) { onnx_fuse::multiply(g, kPairTiles); }
};

}  // namespace
}  // namespace onnx_fuse
