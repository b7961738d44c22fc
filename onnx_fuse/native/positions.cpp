#include "positions.h"

namespace onnx_fuse {
namespace {

ptrdiff_t int32_at(const Tensor& t, ptrdiff_t index) {
  return static_cast<const int32_t*>(t.data)[index];
}

bool check_positions(const Signature& s, const Positions& positions, const Extents& e,
                     Message* message) {
  if (!s.has(kPositionIds)) return true;
  for (int64_t batch = 0; batch < e[kBatch]; ++batch) {
    for (int64_t row = 0; row < e[kQSeq]; ++row) {
      const int64_t at = positions.rotary(batch, row);
      if (0 <= at && at < e[kMaxPositions]) continue;
      return message->set("position_ids[%lld, %lld] is %lld, the rotation's caches have %lld rows",
                          static_cast<long long>(batch), static_cast<long long>(row),
                          static_cast<long long>(at), static_cast<long long>(e[kMaxPositions]));
    }
  }
  return true;
}

bool check_bias(const Signature& s, const Tensor* tensors, const Positions& positions,
                int64_t length, Message* message) {
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
    const int64_t valid = positions.length(batch);
    if (valid <= columns) continue;
    return message->set("seqlens_k[%lld] is %lld, operand 'attn_bias' has only %lld columns",
                        static_cast<long long>(batch), static_cast<long long>(valid - 1),
                        static_cast<long long>(columns));
  }
  return true;
}

}  // namespace

/// Whether this is the step in which nothing is cached yet, whatever the lengths and buffers are.
bool Positions::is_first_prompt() const {
  return signature_.has(kSeqlensK) &&
         extents_[kQSeq] == int32_at(tensors_[kTotalSequenceLength], 0);
}

ptrdiff_t Positions::begin(ptrdiff_t batch) const {
  if (!signature_.has(kSeqlensK)) return extent(kPastSeq);
  return is_first_prompt() ? 0 : length(batch) - extent(kQSeq);
}

ptrdiff_t Positions::length(ptrdiff_t batch) const {
  return signature_.has(kSeqlensK) ? int32_at(tensors_[kSeqlensK], batch) + 1 : -1;
}

ptrdiff_t Positions::rotary(ptrdiff_t batch, ptrdiff_t row) const {
  if (!signature_.has(kPositionIds)) return begin(batch) + row;
  const int64_t* ids = static_cast<const int64_t*>(tensors_[kPositionIds].data);
  return is_first_prompt() ? ids[0] + row : ids[batch * extent(kQSeq) + row];
}

/// How many of the first `length` positions a cache of a window's size holds, the latest ones: it
/// drops as many at once as it has beside the window, and one.
ptrdiff_t Positions::resident(ptrdiff_t length) const {
  const ptrdiff_t places = static_cast<ptrdiff_t>(extents_.total_seq());
  if (length <= places) return length;
  const ptrdiff_t spare = places - window() + 1;
  return length - (length - places + spare - 1) / spare * spare;
}

ptrdiff_t Positions::first_new(ptrdiff_t batch) const {
  const ptrdiff_t before = begin(batch);
  if (!keeps_latest()) return before;
  const ptrdiff_t stay = resident(before + extent(kKvSeq)) - extent(kKvSeq);
  const ptrdiff_t needed = smaller(before, window() - 1);
  return greater(stay, needed);
}

ptrdiff_t Positions::skipped(ptrdiff_t batch) const {
  return keeps_latest() ? resident(begin(batch)) - first_new(batch) : 0;
}

ptrdiff_t Positions::dropped(ptrdiff_t batch) const {
  return keeps_latest() ? used(batch) - resident(begin(batch) + extent(kKvSeq)) : 0;
}

ptrdiff_t Positions::valid(ptrdiff_t batch) const {
  const ptrdiff_t own = length(batch);
  return own < 0 || keeps_latest() ? used(batch) : own;
}

bool check_lengths(const Signature& s, const Tensor* tensors, Extents* extents, Message* message) {
  if (!s.has(kSeqlensK)) return true;
  const Tensor& total = tensors[kTotalSequenceLength];
  if (total.rank == 1 && total.dims[0] != 1) {
    return message->set("operand 'total_sequence_length' is empty");
  }
  const Extents& e = *extents;
  const Positions positions(s, tensors, e);
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
    const int64_t first = positions.begin(batch), end = first + seq;
    const int64_t valid = positions.length(batch);
    const bool fits =
        latest ? 0 <= first && valid == end && end <= length
               : 0 <= first && first <= past && end <= present && 0 < valid && valid <= end;
    const bool by_place = s.has(kCosCache) && !s.has(kPositionIds);
    if (fits && (!by_place || end <= e[kMaxPositions])) continue;
    return message->set(
        "seqlens_k[%lld] is %lld, which does not fit %lld new positions, a past of %lld and a "
        "total of %lld%s",
        static_cast<long long>(batch), static_cast<long long>(valid - 1),
        static_cast<long long>(seq), static_cast<long long>(past), static_cast<long long>(length),
        fits ? ", beyond the rotation's caches" : "");
  }
  extents->value[kPresentSeq] = present;
  return check_positions(s, positions, e, message) &&
         check_bias(s, tensors, positions, length, message);
}

}  // namespace onnx_fuse
