// Any machine.
#include "simd_portable.h"
// The vector type comes first.
#include "kernels_inl.h"

namespace onnx_fuse {
namespace {
bool available() { return true; }
}  // namespace

const Kernels kPortableKernels = make_kernels("portable", available);
}  // namespace onnx_fuse
