// What decides beside the instruction set.
#pragma once

namespace onnx_fuse {

/// Whether weights that nothing else reads are best prefetched to L1 from afar. Most processors
/// keep too few misses of L1 in flight for memory's latency, but more of L2; Zen 5 keeps enough of
/// both.
extern const bool kPrefetchesToL1;

}  // namespace onnx_fuse
