// Chooses the instruction set.
#pragma once

#include "kernels.h"

namespace onnx_fuse {

/// The fastest that this machine has, or the one that the environment variable ONNX_FUSE_ISA names.
/// Null if that one is unknown or not available here; `requested` is then its name.
const Kernels* select_kernels(const char** requested);

/// Writes the names of all that this machine has and chooses by itself, best first, separated by
/// commas; returns their length. `text` has room for them.
int list_kernels(char* text, size_t size);

/// All that were compiled in, best first, ending with null.
extern const Kernels* const kAllKernels[];

}  // namespace onnx_fuse
