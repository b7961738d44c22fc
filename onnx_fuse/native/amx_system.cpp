#include "amx_system.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace onnx_fuse {

CpuidRegisters cpuid(unsigned leaf) {
  CpuidRegisters r = {};
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t saved_states() {
  uint32_t lower = 0, upper = 0;
  asm volatile("xgetbv" : "=a"(lower), "=d"(upper) : "c"(0));
  return uint64_t{upper} << 32 | lower;
}

long arch_prctl(long code, uint64_t argument) { return syscall(SYS_arch_prctl, code, argument); }

}  // namespace onnx_fuse
