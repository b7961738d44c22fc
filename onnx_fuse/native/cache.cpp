// A cache in which each batch has its own length: where new keys and values go, what is seen of it,
// and the rotation by place.
#include <string.h>

#include "block.h"

namespace onnx_fuse {
namespace {

int64_t int32_at(const Tensor& t, int64_t index) {
  return static_cast<const int32_t*>(t.data)[index];
}

}  // namespace

bool is_first_prompt(const Signature& s, const Tensor* tensors, const Extents& extents) {
  return s.has(kSeqlensK) && extents[kQSeq] == int32_at(tensors[kTotalSequenceLength], 0);
}

int64_t new_position(const Signature& s, const Tensor* tensors, const Extents& extents,
                     int64_t batch) {
  if (!s.has(kSeqlensK)) return extents[kPastSeq];
  if (is_first_prompt(s, tensors, extents)) return 0;
  return sequence_length(s, tensors, batch) - extents[kQSeq];
}

int64_t sequence_length(const Signature& s, const Tensor* tensors, int64_t batch) {
  return s.has(kSeqlensK) ? int32_at(tensors[kSeqlensK], batch) + int64_t{1} : -1;
}

int64_t rotary_position(const Signature& s, const Tensor* tensors, const Extents& extents,
                        int64_t batch, int64_t row) {
  if (!s.has(kPositionIds)) return new_position(s, tensors, extents, batch) + row;
  const int64_t* ids = static_cast<const int64_t*>(tensors[kPositionIds].data);
  return is_first_prompt(s, tensors, extents) ? ids[0] + row : ids[batch * extents[kQSeq] + row];
}

namespace {

bool check_positions(const Signature& s, const Tensor* tensors, const Extents& e,
                     Message* message) {
  if (!s.has(kPositionIds)) return true;
  for (int64_t batch = 0; batch < e[kBatch]; ++batch) {
    for (int64_t row = 0; row < e[kQSeq]; ++row) {
      const int64_t at = rotary_position(s, tensors, e, batch, row);
      if (0 <= at && at < e[kMaxPositions]) continue;
      return message->set("position_ids[%lld, %lld] is %lld, the rotation's caches have %lld rows",
                          static_cast<long long>(batch), static_cast<long long>(row),
                          static_cast<long long>(at), static_cast<long long>(e[kMaxPositions]));
    }
  }
  return true;
}

bool check_bias(const Signature& s, const Tensor* tensors, int64_t length, Message* message) {
  if (!s.has(kAttnBias)) return true;
  const Tensor& bias = tensors[kAttnBias];
  const int64_t columns = bias.rank > 0 ? bias.dims[bias.rank - 1] : 1;
  if (columns == 1) return true;
  if (columns != length) {
    return message->set(
        "operand 'attn_bias' has %lld columns, expected total_sequence_length = %lld",
        static_cast<long long>(columns), static_cast<long long>(length));
  }
  for (int64_t batch = 0; batch < tensors[kSeqlensK].dims[0]; ++batch) {
    const int64_t valid = sequence_length(s, tensors, batch);
    if (valid <= columns) continue;
    return message->set("seqlens_k[%lld] is %lld, operand 'attn_bias' has only %lld columns",
                        static_cast<long long>(batch), static_cast<long long>(valid - 1),
                        static_cast<long long>(columns));
  }
  return true;
}

}  // namespace

bool check_lengths(const Signature& s, const Tensor* tensors, Extents* extents, Message* message) {
  if (!s.has(kSeqlensK)) return true;
  const Tensor& total = tensors[kTotalSequenceLength];
  if (total.rank == 1 && total.dims[0] != 1) {
    return message->set("operand 'total_sequence_length' is empty");
  }
  const Extents& e = *extents;
  const int64_t length = int32_at(total, 0), past = e[kPastSeq], seq = e[kKvSeq];
  const bool latest = s.attributes.window_cache != 0;
  const int64_t present = length > past && !latest ? length : past;
  if (seq != e[kQSeq]) {
    return message->set("with seqlens_k there are as many keys as queries, found %lld and %lld",
                        static_cast<long long>(seq), static_cast<long long>(e[kQSeq]));
  }
  if (latest && past < s.attributes.window_size) {
    return message->set("a cache of %lld positions does not hold a window of %lld",
                        static_cast<long long>(past),
                        static_cast<long long>(s.attributes.window_size));
  }
  for (int64_t batch = 0; batch < e[kBatch]; ++batch) {
    const int64_t first = new_position(s, tensors, e, batch), end = first + seq;
    const int64_t valid = sequence_length(s, tensors, batch);
    const bool fits =
        latest ? 0 <= first && valid == end && end <= length
               : 0 <= first && first <= past && end <= present && 0 < valid && valid <= end;
    const bool by_place = s.has(kCosCache) && !s.has(kPositionIds);
    if (fits && (!by_place || end <= e[kMaxPositions])) continue;
    return message->set(
        "seqlens_k[%lld] is %lld, which does not fit %lld new positions, a past of %lld and a "
        "total "
        "of %lld%s",
        static_cast<long long>(batch), static_cast<long long>(valid - 1),
        static_cast<long long>(seq), static_cast<long long>(past), static_cast<long long>(length),
        fits ? ", beyond the rotation's caches" : "");
  }
  extents->value[kPresentSeq] = present;
  return check_positions(s, tensors, e, message) && check_bias(s, tensors, length, message);
}

/// Where in its sequence a batch's new rows begin.
ptrdiff_t Block::position(ptrdiff_t batch) const {
  return static_cast<ptrdiff_t>(new_position(signature_, tensors_, extents_, batch));
}

/// How many of the first `length` positions a cache of a window's size holds, the latest ones: it
/// drops as many at once as it has beside the window, and one.
ptrdiff_t Block::resident(ptrdiff_t length) const {
  const ptrdiff_t spare = present_seq_ - static_cast<ptrdiff_t>(attributes_.window_size) + 1;
  return length <= present_seq_ ? length : length - pieces(length - present_seq_, spare) * spare;
}

/// Rows of the past that stand before the new ones: all of them, or, in a cache of a window's size,
/// those that stay and those that the first new row's window needs.
ptrdiff_t Block::first_new(ptrdiff_t batch) const {
  const ptrdiff_t before = position(batch);
  if (!attributes_.window_cache) return before;
  const ptrdiff_t window = static_cast<ptrdiff_t>(attributes_.window_size);
  const ptrdiff_t stay = resident(before + key_.seq) - key_.seq;
  const ptrdiff_t needed = before < window ? before : window - 1;
  return stay > needed ? stay : needed;
}

/// Rows of the past before those.
ptrdiff_t Block::skipped(ptrdiff_t batch) const {
  return attributes_.window_cache ? resident(position(batch)) - first_new(batch) : 0;
}

/// Joined rows that are not cached afterwards: there are some if the step needs more than can stay.
ptrdiff_t Block::dropped(ptrdiff_t batch) const {
  return attributes_.window_cache ? used(batch) - resident(position(batch) + key_.seq) : 0;
}

/// Positions that a batch's rows may see: a padded prompt has new ones behind its own length.
ptrdiff_t Block::valid(ptrdiff_t batch) const {
  const ptrdiff_t length = static_cast<ptrdiff_t>(sequence_length(signature_, tensors_, batch));
  return length < 0 || attributes_.window_cache ? used(batch) : length;
}

void Block::plan_lengths() {
  if (!signature_.has(kSeqlensK)) {
    total_seq_ = present_seq_;
    return;
  }
  bool is_staged = false;
  for (ptrdiff_t batch = 0; batch < batch_; ++batch) {
    if (used(batch) > total_seq_) total_seq_ = used(batch);
    is_staged = is_staged || dropped(batch) > 0;
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
        const int64_t at = rotary_position(signature_, tensors_, extents_, batch, row);
        const float* from = floats(cache) + static_cast<ptrdiff_t>(at) * half;
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
  if (dropped(batch) == 0) return after + index * present_seq_ * dim;
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
  if (before) c.past = before + (index * extent(kPastSeq) + skipped(batch)) * dim;
  if (after) c.present = after + index * present_seq_ * dim;
  c.joined = joined(of_key, batch, kv_head);
  return c;
}

/// Brings a past that loses its first rows to where it stays, if it is joined there.
void Block::move_past(Cache* c, ptrdiff_t batch) const {
  if (!c->in_place || c->joined != c->present || skipped(batch) == 0) return;
  const size_t bytes = static_cast<size_t>(first_new(batch) * c->dim) * sizeof(float);
  memmove(c->present, c->past, bytes);
  c->past = c->present;
}

/// The latest of the joined rows, and zeros in the positions that no one has written, unless it is
/// the past's own memory.
void Block::finish_present(const Cache& c, ptrdiff_t batch) const {
  if (!c.present) return;
  const ptrdiff_t end = used(batch) - dropped(batch);
  const auto bytes = [&](ptrdiff_t rows) {
    return static_cast<size_t>(rows * c.dim) * sizeof(float);
  };
  if (c.joined != c.present) memcpy(c.present, c.joined + dropped(batch) * c.dim, bytes(end));
  if (!c.in_place) memset(c.present + end * c.dim, 0, bytes(present_seq_ - end));
}

}  // namespace onnx_fuse
