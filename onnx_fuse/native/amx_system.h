// What the processor and the system answer when they are asked for AMX. The tests on machines
// without it link other answers in place of amx_system.cpp.
#pragma once

#include <stdint.h>

namespace onnx_fuse {

struct CpuidRegisters {
  unsigned eax, ebx, ecx, edx;
};

/// Sub-leaf 0; zeros for a leaf that the processor has not.
CpuidRegisters cpuid(unsigned leaf);

/// XCR0, the states that the system saves for each thread. Only where cpuid says that there is one.
uint64_t saved_states();

/// The system call: 0, or a negative number.
long arch_prctl(long code, uint64_t argument);

}  // namespace onnx_fuse
