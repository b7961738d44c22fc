// The caches of heads: what is joined where, what stays of it, and the rotation by place.
#include <string.h>

#include "heads.h"

namespace onnx_fuse {

/// One element for each rotated one.
void Heads::fill_tables() const {
  if (!plan_.signature.has(kCosCache)) return;
  const ptrdiff_t half = extent(kHalfRotaryDim);
  float* to = scratch_ + plan_.at.tables;
  constexpr Operand kCaches[] = {kCosCache, kSinCache};
  for (const Operand cache : kCaches) {
    for (ptrdiff_t batch = 0; batch < plan_.batch; ++batch) {
      for (ptrdiff_t row = 0; row < plan_.q_seq; ++row, to += 2 * half) {
        const float* from = floats(cache) + plan_.positions.rotary(batch, row) * half;
        for (ptrdiff_t i = 0; i < half; ++i) {
          const ptrdiff_t one = plan_.attributes.interleaved ? 2 * i : i;
          to[one] = to[plan_.attributes.interleaved ? one + 1 : i + half] = from[i];
        }
      }
    }
  }
}

/// Past and new rows of K or V, or null: they are not joined.
float* Heads::joined(const KvHead& kv, bool of_key) const {
  const ptrdiff_t dim = of_key ? key_.dim : value_.dim;
  float* after = of_key ? plan_.outputs.present_key : plan_.outputs.present_value;
  if (!after) return nullptr;
  if (plan_.positions.dropped(kv.batch) == 0) return after + kv.index * plan_.present_seq * dim;
  const size_t staged = of_key ? plan_.at.staged_keys : plan_.at.staged_values;
  return scratch_ + staged + static_cast<size_t>(kv.index * plan_.total_seq * dim);
}

Cache Heads::cache(const KvHead& kv, bool of_key) const {
  const ptrdiff_t dim = of_key ? key_.dim : value_.dim;
  const float* before = floats(of_key ? kPastKey : kPastValue);
  float* after = of_key ? plan_.outputs.present_key : plan_.outputs.present_value;
  Cache c = {};
  c.dim = dim;
  c.in_place = before && before == after;
  if (before)
    c.past = before + (kv.index * extent(kPastSeq) + plan_.positions.skipped(kv.batch)) * dim;
  if (after) c.present = after + kv.index * plan_.present_seq * dim;
  c.joined = joined(kv, of_key);
  return c;
}

/// Brings a past that loses its first rows to where it stays, if it is joined there.
void Heads::move_past(Cache* c, ptrdiff_t batch) const {
  if (!c->in_place || c->joined != c->present || plan_.positions.skipped(batch) == 0) return;
  const size_t bytes =
      static_cast<size_t>(plan_.positions.first_new(batch) * c->dim) * sizeof(float);
  memmove(c->present, c->past, bytes);
  c->past = c->present;
}

/// The latest of the joined rows, and zeros in the positions that no one has written, unless it is
/// the past's own memory.
void Heads::finish_present(const Cache& c, ptrdiff_t batch) const {
  if (!c.present) return;
  const ptrdiff_t end = plan_.positions.used(batch) - plan_.positions.dropped(batch);
  const auto bytes = [&](ptrdiff_t rows) {
    return static_cast<size_t>(rows * c.dim) * sizeof(float);
  };
  if (c.joined != c.present)
    memcpy(c.present, c.joined + plan_.positions.dropped(batch) * c.dim, bytes(end));
  if (!c.in_place) memset(c.present + end * c.dim, 0, bytes(plan_.present_seq - end));
}

}  // namespace onnx_fuse
