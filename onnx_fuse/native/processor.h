// What decides beside the instruction set.
#pragma once

namespace onnx_fuse {

/// Whether weights that nothing else reads are best called from afar to L1. Most processors keep
/// too few misses of L1 in flight for memory's latency, but more of L2; Zen 5 keeps enough of both.
extern const bool kCallsToL1;

}  // namespace onnx_fuse
