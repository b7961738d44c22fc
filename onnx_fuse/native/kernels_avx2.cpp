// Intel from Haswell (2013), AMD from Excavator (2015) and Zen (2017).
#include "simd_avx2.h"
// The vector type comes first.
#include "kernels_inl.h"

namespace onnx_fuse {
namespace {
bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace

const Kernels kAvx2Kernels = make_kernels("avx2", available);
}  // namespace onnx_fuse
