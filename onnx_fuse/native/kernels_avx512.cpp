// Intel from Skylake-X (2017), AMD from Zen 4 (2022).
#include "simd_avx512.h"
// The vector type comes first.
#include "kernels_inl.h"

namespace onnx_fuse {
const Kernels kAvx512Kernels = make_kernels("avx512", has_avx512);
}  // namespace onnx_fuse
