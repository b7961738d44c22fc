#include "dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace onnx_fuse {

const Kernels* const kAllKernels[] = {
#if defined(ONNX_FUSE_X86)
    &kAmxKernels,      &kAvx512Bf16Kernels,
    &kAvx512Kernels,   &kAmxStandInKernels,
    &kAvx2Kernels,
#elif defined(ONNX_FUSE_NEON)
    &kNeonBf16Kernels, &kNeonKernels,
#endif
    &kPortableKernels, nullptr,
};

const Kernels* select_kernels(const char** requested) {
  *requested = getenv("ONNX_FUSE_ISA");
  const bool any = *requested == nullptr || **requested == '\0';
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    const bool wanted = any ? !(*k)->by_name_only : strcmp((*k)->name, *requested) == 0;
    if (wanted && (*k)->available()) return *k;
  }
  return nullptr;
}

int list_kernels(char* text, size_t size) {
  int length = 0;
  const char* comma = "";
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    if ((*k)->by_name_only || !(*k)->available()) continue;
    length +=
        snprintf(text + length, size - static_cast<size_t>(length), "%s%s", comma, (*k)->name);
    comma = ",";
  }
  return length;
}

}  // namespace onnx_fuse
