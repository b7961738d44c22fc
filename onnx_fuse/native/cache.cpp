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
  if (columns == 1 || columns == length) return true;
  return message->set("operand 'attn_bias' has %lld columns, expected total_sequence_length = %lld",
                      static_cast<long long>(columns), static_cast<long long>(length));
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
  const int64_t present = length > past ? length : past;
  if (seq != e[kQSeq]) {
    return message->set("with seqlens_k there are as many keys as queries, found %lld and %lld",
                        static_cast<long long>(seq), static_cast<long long>(e[kQSeq]));
  }
  for (int64_t batch = 0; batch < e[kBatch]; ++batch) {
    const int64_t first = new_position(s, tensors, e, batch), end = first + seq;
    const int64_t valid = sequence_length(s, tensors, batch);
    const bool fits = 0 <= first && first <= past && end <= present && 0 < valid && valid <= end;
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

ptrdiff_t Block::first_new(ptrdiff_t batch) const {
  return static_cast<ptrdiff_t>(new_position(signature_, tensors_, extents_, batch));
}

/// Positions that a batch's rows may see: a padded prompt has new ones behind its own length.
ptrdiff_t Block::valid(ptrdiff_t batch) const {
  const ptrdiff_t length = static_cast<ptrdiff_t>(sequence_length(signature_, tensors_, batch));
  return length < 0 ? used(batch) : length;
}

void Block::plan_lengths() {
  if (!signature_.has(kSeqlensK)) {
    total_seq_ = present_seq_;
    return;
  }
  for (ptrdiff_t batch = 0; batch < batch_; ++batch) {
    if (used(batch) > total_seq_) total_seq_ = used(batch);
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

/// Zeros in the positions of the cache that no one has written, unless it is the past's own memory.
void Block::clear_unused(float* present, ptrdiff_t batch, ptrdiff_t dim) const {
  const ptrdiff_t end = used(batch);
  memset(present + end * dim, 0, static_cast<size_t>((present_seq_ - end) * dim) * sizeof(float));
}

}  // namespace onnx_fuse
