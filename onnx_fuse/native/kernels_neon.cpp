// Every 64-bit Arm processor.
#include "simd_neon.h"
// The vector type comes first.
#include "kernels_inl.h"

namespace onnx_fuse {
namespace {
bool available() { return true; }
}  // namespace

const Kernels kNeonKernels = make_kernels("neon", available);
}  // namespace onnx_fuse
