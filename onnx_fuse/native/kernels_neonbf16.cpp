// Arm from Neoverse V1 and N2 (2021): pairs are multiplied at the speed of float32's numbers.
#include <sys/auxv.h>

#include "simd_neon.h"
// The vector type comes first.
#include "gemm_pairs_inl.h"

namespace onnx_fuse {
namespace {

bool available() { return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0; }

}  // namespace

const Kernels kNeonBf16Kernels = make_pair_kernels("neonbf16", available);
}  // namespace onnx_fuse
