// Names the functions of this instruction set as one table row. Included last by kernels_<isa>.cpp,
// after its vector type; everything in between has internal linkage, so that no function compiled
// for one instruction set can be merged with another's by the linker.
#pragma once

#include "attention_inl.h"
#include "gemm_inl.h"
#include "math_inl.h"

namespace onnx_fuse {
namespace {

constexpr Kernels make_kernels(const char* name, bool (*available)()) {
  Kernels k = {};
  k.name = name;
  k.available = available;
  k.gemm = gemm;
  k.packed_floats = packed_floats;
  k.pack = pack;
  k.row_statistics = row_statistics;
  k.prepare_key = prepare_key_for<FloatProducts>;
  k.prepare_value = prepare_value;
  k.greatest = greatest;
  k.attend = attend_by<FloatProducts>;
  k.combine = combine;
  k.attend_scratch = attend_scratch_for<FloatProducts>;
  return k;
}

}  // namespace
}  // namespace onnx_fuse
