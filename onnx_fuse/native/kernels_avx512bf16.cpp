// AMD from Zen 4 (2022). Intel from Cooper Lake (2020) has the instruction too, at half the speed
// of float32's: there avx512 is as fast and more exact.
#include "simd_avx512.h"
// The vector type comes first.
#include "kernels_inl.h"
// Need the kernels before.
#include "attention_pairs_inl.h"

namespace onnx_fuse {
namespace {

bool available() {
  return __builtin_cpu_is("amd") && has_avx512() && __builtin_cpu_supports("avx512bf16");
}

constexpr Kernels make_pair_kernels() {
  Kernels k = make_kernels("avx512bf16", available);
  k.gemm = gemm_with_pairs;
  k.packed_floats = packed_pairs;
  k.pack = pack_pairs;
  return with_narrow_attention<PairProducts>(k);
}

}  // namespace

extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels = make_pair_kernels();
}  // namespace onnx_fuse
