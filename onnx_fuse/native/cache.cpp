// The caches of a block: what is joined where, what stays of it, and the rotation by place.
#include <string.h>

#include "block.h"

namespace onnx_fuse {

void Block::plan_lengths() {
  if (!signature_.has(kSeqlensK)) {
    total_seq_ = present_seq_;
    return;
  }
  bool is_staged = false;
  for (ptrdiff_t batch = 0; batch < batch_; ++batch) {
    if (positions_.used(batch) > total_seq_) total_seq_ = positions_.used(batch);
    is_staged = is_staged || positions_.dropped(batch) > 0;
  }
  if (is_staged) {
    const int64_t heads = static_cast<int64_t>(batch_) * kv_heads_;
    staged_keys_ = layout_.reserve(heads, total_seq_, key_.dim);
    staged_values_ = layout_.reserve(heads, total_seq_, value_.dim);
  }
  if (signature_.has(kCosCache)) tables_ = layout_.reserve(2 * batch_, q_seq_, extent(kRotaryDim));
}

/// The caches' rows of each new position, with one element for each rotated one.
void Block::fill_tables() {
  if (!signature_.has(kCosCache)) return;
  const ptrdiff_t half = extent(kHalfRotaryDim);
  float* to = scratch_ + tables_;
  constexpr Operand kCaches[] = {kCosCache, kSinCache};
  for (const Operand cache : kCaches) {
    for (ptrdiff_t batch = 0; batch < batch_; ++batch) {
      for (ptrdiff_t row = 0; row < q_seq_; ++row, to += 2 * half) {
        const float* from = floats(cache) + positions_.rotary(batch, row) * half;
        for (ptrdiff_t i = 0; i < half; ++i) {
          const ptrdiff_t one = attributes_.interleaved ? 2 * i : i;
          to[one] = to[attributes_.interleaved ? one + 1 : i + half] = from[i];
        }
      }
    }
  }
}

/// Past and new rows of K or V, or null: they are not joined.
float* Block::joined(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const {
  const ptrdiff_t index = batch * kv_heads_ + kv_head, dim = of_key ? key_.dim : value_.dim;
  float* after = of_key ? outputs_.present_key : outputs_.present_value;
  if (!after) return nullptr;
  if (positions_.dropped(batch) == 0) return after + index * present_seq_ * dim;
  const size_t staged = of_key ? staged_keys_ : staged_values_;
  return scratch_ + staged + static_cast<size_t>(index * total_seq_ * dim);
}

Cache Block::cache(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const {
  const ptrdiff_t index = batch * kv_heads_ + kv_head, dim = of_key ? key_.dim : value_.dim;
  const float* before = floats(of_key ? kPastKey : kPastValue);
  float* after = of_key ? outputs_.present_key : outputs_.present_value;
  Cache c = {};
  c.dim = dim;
  c.in_place = before && before == after;
  if (before) c.past = before + (index * extent(kPastSeq) + positions_.skipped(batch)) * dim;
  if (after) c.present = after + index * present_seq_ * dim;
  c.joined = joined(of_key, batch, kv_head);
  return c;
}

/// Brings a past that loses its first rows to where it stays, if it is joined there.
void Block::move_past(Cache* c, ptrdiff_t batch) const {
  if (!c->in_place || c->joined != c->present || positions_.skipped(batch) == 0) return;
  const size_t bytes = static_cast<size_t>(positions_.first_new(batch) * c->dim) * sizeof(float);
  memmove(c->present, c->past, bytes);
  c->past = c->present;
}

/// The latest of the joined rows, and zeros in the positions that no one has written, unless it is
/// the past's own memory.
void Block::finish_present(const Cache& c, ptrdiff_t batch) const {
  if (!c.present) return;
  const ptrdiff_t end = positions_.used(batch) - positions_.dropped(batch);
  const auto bytes = [&](ptrdiff_t rows) {
    return static_cast<size_t>(rows * c.dim) * sizeof(float);
  };
  if (c.joined != c.present)
    memcpy(c.present, c.joined + positions_.dropped(batch) * c.dim, bytes(end));
  if (!c.in_place) memset(c.present + end * c.dim, 0, bytes(present_seq_ - end));
}

}  // namespace onnx_fuse
