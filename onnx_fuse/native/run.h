// A whole block as steps over shared scratch.
//
//   pack      A of a product for a unit that wants it so (only some instruction sets)
//   project   Q, K, V = source * weight + bias, by panels and rows
//   measure   row statistics, for norms that span all heads
//   attend    by (batch, kv head): K normed, rotated, joined with the past, put into panels; V
//             joined, where it cannot be read where it lies; then for each query head and each
//             tile of rows: norm, rotation, scores, softmax, values. One position, or a few rows
//             that read K as it lies, behind a longer K: by (batch, kv head, part of K and V).
//             Rows that are done are multiplied by their gate
//   combine   the parts of the latter, at the same places whoever computed them
//   merge     output = context * out_weight + bias, by panels and rows
//
// All of them are handed over at once, and the workers meet between two steps (crew.h); a step that
// isn't worth meeting for is one worker's. Projecting and attending a head in one go saves a
// meeting, but reads three places of the weight in turns: measured up to 25 % slower than reading
// it in order, never faster. How the work is split does not change the result, not in a bit.
#pragma once

#include <stddef.h>

#include "crew.h"
#include "heads.h"
#include "plan.h"

namespace onnx_fuse {

/// Computes a plan's outputs with scratch aligned to 64 bytes. Returns how many workers took part;
/// 0 if the work wasn't worth sharing.
size_t run_plan(const Plan& plan, void* scratch, const Pool& pool);

}  // namespace onnx_fuse
