// Names the functions of this instruction set as one table row. Included last by kernels_<isa>.cpp,
// after its vector type; everything in between has internal linkage, so that no function compiled
// for one instruction set can be merged with another's by the linker.
#pragma once

#include "attention_inl.h"
#include "gemm_inl.h"
#include "math_inl.h"

namespace onnx_fuse {
namespace {

constexpr Kernels make_kernels(const char* name, const char* requires_text, bool (*available)()) {
  return {name,        requires_text, available,  gemm,   row_statistics,
          prepare_key, prepare_value, all_finite, attend, attend_scratch};
}

}  // namespace
}  // namespace onnx_fuse
