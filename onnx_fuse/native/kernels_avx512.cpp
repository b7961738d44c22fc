// Intel from Skylake-X (2017), AMD from Zen 4 (2022).
#include "simd_avx512.h"
// The vector type comes first.
#include "kernels_inl.h"

namespace onnx_fuse {
namespace {
bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
}  // namespace

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = make_kernels("avx512", "AVX-512 F, BW, DQ and VL", available);
}  // namespace onnx_fuse
