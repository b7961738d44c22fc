#include "processor.h"

#ifdef ONNX_FUSE_X86
#include <cpuid.h>
#endif

namespace onnx_fuse {
namespace {

#ifdef ONNX_FUSE_X86
/// AMD's family 0x1a (AMD's manual, CPUID Fn0000_0001_EAX).
bool is_zen5_or_later() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __builtin_cpu_init();
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned family = eax >> 8 & 0xf, extended = eax >> 20 & 0xff;
  return family == 0xf && family + extended >= 0x1a;
}
#else
bool is_zen5_or_later() { return false; }
#endif

}  // namespace

const bool kPrefetchesToL1 = is_zen5_or_later();

}  // namespace onnx_fuse
