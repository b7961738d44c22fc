// A whole block as steps over shared scratch, and how the steps are handed to threads.
//
//   pack      A of a product for a unit that wants it so (only some instruction sets)
//   project   Q, K, V = source * weight + bias, by panels and rows
//   measure   row statistics, for norms that span all heads
//   attend    by (batch, kv head): K normed, rotated, joined with the past, put into panels; V
//             joined, where it cannot be read where it lies; then for each query head and each
//             tile of rows: norm, rotation, scores, softmax, values. One position, or a few rows
//             that read K as it lies, behind a longer K: by (batch, kv head, part of K and V)
//   combine   the parts of the latter, at the same places whoever computed them
//   merge     output = context * out_weight + bias, by panels and rows
//
// A step that is too small to share stays on the caller: at a few rows only project and merge are
// handed over. Projecting and attending a head in one go saves a hand-over, but reads three places
// of the weight in turns: measured up to 25 % slower than reading it in order, never faster. How
// the work is split does not change the result, not in a bit.
#pragma once

#include <stddef.h>

#include "heads.h"
#include "plan.h"

namespace onnx_fuse {

/// The host's thread pool: runs fn(user, i) for all i < count and returns when all are done.
struct Pool {
  void* host;
  void (*run)(void* host, void (*fn)(void* user, size_t i), size_t count, void* user);
};

/// Computes a plan's outputs with scratch aligned to 64 bytes. Returns how many workers took part;
/// 0 if there was nothing worth sharing.
size_t run_plan(const Plan& plan, const Outputs& outputs, void* scratch, const Pool& pool);

}  // namespace onnx_fuse
