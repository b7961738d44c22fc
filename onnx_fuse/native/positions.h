// Where a call's new keys and values stand: each batch may have a past, and a length, of its own.
#pragma once

#include <stddef.h>

#include "operands.h"

namespace onnx_fuse {

/// The places of one call's rows. Its arguments must outlive it.
class Positions {
 public:
  Positions(const Signature& signature, const Tensor* tensors, const Extents& extents)
      : signature_(signature), tensors_(tensors), extents_(extents) {}

  /// Where in its sequence a batch's new rows begin: behind the past, or where seqlens_k says.
  ptrdiff_t begin(ptrdiff_t batch) const;

  /// A batch's length by seqlens_k; -1 without it.
  ptrdiff_t length(ptrdiff_t batch) const;

  /// To which position a new row of K and of Q is rotated, with cos_cache.
  ptrdiff_t rotary(ptrdiff_t batch, ptrdiff_t row) const;

  // The rows that are joined, and what a cache of a window's size keeps of them.

  /// Rows of the past that stand before the new ones: all of them, or, in a cache of a window's
  /// size, those that stay and those that the first new row's window needs.
  ptrdiff_t first_new(ptrdiff_t batch) const;

  /// Rows of the past before those.
  ptrdiff_t skipped(ptrdiff_t batch) const;

  /// Past and new rows that are joined.
  ptrdiff_t used(ptrdiff_t batch) const { return first_new(batch) + extent(kKvSeq); }

  /// Joined rows that are not cached afterwards: there are some if the step needs more than can
  /// stay.
  ptrdiff_t dropped(ptrdiff_t batch) const;

  /// Joined rows that a batch's own may see: a padded prompt has new ones behind its own length.
  ptrdiff_t valid(ptrdiff_t batch) const;

 private:
  ptrdiff_t extent(Extent e) const { return static_cast<ptrdiff_t>(extents_[e]); }
  ptrdiff_t window() const { return static_cast<ptrdiff_t>(signature_.attributes.window_size); }
  bool keeps_latest() const { return signature_.attributes.window_cache != 0; }
  bool is_first_prompt() const;
  ptrdiff_t resident(ptrdiff_t length) const;

  const Signature& signature_;
  const Tensor* tensors_;
  const Extents& extents_;
};

/// Whether what seqlens_k, total_sequence_length and position_ids hold fits the extents; sets
/// kPresentSeq.
bool check_lengths(const Signature& signature, const Tensor* tensors, Extents* extents,
                   Message* message);

}  // namespace onnx_fuse
