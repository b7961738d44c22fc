// AMD from Zen 4 (2022). Intel from Cooper Lake (2020) has the instruction too, at half the speed
// of float32's: there avx512 is as fast and more exact.
#include "simd_avx512.h"
// The vector type comes first.
#include "gemm_pairs_inl.h"

namespace onnx_fuse {
namespace {

bool available() {
  return __builtin_cpu_is("amd") && has_avx512() && __builtin_cpu_supports("avx512bf16");
}

}  // namespace

const Kernels kAvx512Bf16Kernels = make_pair_kernels("avx512bf16", available);
}  // namespace onnx_fuse
