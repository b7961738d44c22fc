// One head of a block: its norms, rotations and masks, K and V as attention reads them, and its
// rows.
#include <math.h>

#include "block.h"

namespace onnx_fuse {
namespace {

/// Elements from one index to the next along an axis counted from the last; 0 where broadcast.
ptrdiff_t stride(const Tensor& t, int from_last) {
  const int axis = t.rank - 1 - from_last;
  if (axis < 0 || t.dims[axis] == 1) return 0;
  int64_t elements = 1;
  for (int i = axis + 1; i < t.rank; ++i) elements *= t.dims[i];
  return static_cast<ptrdiff_t>(elements);
}

}  // namespace

Norm Block::norm(bool of_query, ptrdiff_t batch, ptrdiff_t head) const {
  const Attributes& a = attributes_;
  const ptrdiff_t dim = extent(kHeadDim);
  const float* weight = floats(of_query ? kQNormWeight : kKNormWeight);
  const float* bias = floats(of_query ? kQNormBias : kKNormBias);
  const float* statistics = nullptr;
  if (of_query ? a.q_norm_over_heads : a.k_norm_over_heads) {
    const ptrdiff_t seq = of_query ? q_seq_ : key_.seq;
    statistics = scratch_ + (of_query ? query_statistics_ : key_statistics_) + batch * seq * 2;
  }
  return {of_query ? a.q_norm : a.k_norm,
          weight ? weight + head * dim : nullptr,
          bias ? bias + head * dim : nullptr,
          0,
          of_query ? a.q_norm_epsilon : a.k_norm_epsilon,
          statistics};
}

Rope Block::rope(bool of_query, ptrdiff_t batch, ptrdiff_t head) const {
  const ptrdiff_t dims = extent(kRotaryDim);
  if (signature_.has(kCosCache)) {
    const float* cos = scratch_ + tables_ + batch * q_seq_ * dims;
    return {cos, cos + batch_ * q_seq_ * dims, dims, dims, dims, attributes_.interleaved != 0};
  }
  const Operand cos = of_query ? kQCos : kKCos, sin = of_query ? kQSin : kKSin;
  if (!signature_.has(cos)) return {};
  const Tensor& c = tensors_[cos];
  const Tensor& s = tensors_[sin];
  return {floats(cos) + batch * stride(c, 3) + head * stride(c, 2),
          floats(sin) + batch * stride(s, 3) + head * stride(s, 2),
          stride(c, 1),
          stride(s, 1),
          dims,
          attributes_.interleaved != 0};
}

ScoreTerm Block::term(Operand o, ptrdiff_t batch, ptrdiff_t head) const {
  if (!signature_.has(o)) return {};
  const Tensor& t = tensors_[o];
  const ptrdiff_t size = t.type == kBool ? 1 : sizeof(float);
  const ptrdiff_t first = batch * stride(t, 3) + head * stride(t, 2);
  return {static_cast<const char*>(t.data) + first * size, stride(t, 1), stride(t, 0)};
}

/// With a few query rows to a kv head it is not worth writing K's panels and reading them again, if
/// K's rows lie in one piece.
bool Block::reads_key_rows() const {
  constexpr ptrdiff_t kFewRows = 8;
  const bool joined = outputs_.present_key != nullptr;
  const bool as_given = signature_.has(kKey) && attributes_.k_norm == NormKind::kNone &&
                        !signature_.has(kKCos) && !signature_.has(kPastKey);
  return q_seq_ * group_ <= kFewRows && (joined || as_given);
}

HeadRows Block::joined_key(ptrdiff_t batch, ptrdiff_t kv_head) const {
  if (!outputs_.present_key) return key_.of(batch, kv_head);
  return {cache(true, batch, kv_head).joined, key_.dim, kPanel};
}

float* Block::key_panels(ptrdiff_t index) const {
  const ptrdiff_t size = round_to_panel(total_seq_) * words_of(key_.dim, narrow_);
  return scratch_ + key_panels_ + static_cast<size_t>(index * size);
}

float* Block::narrow_values(ptrdiff_t index) const {
  const ptrdiff_t size = panels_of(value_.dim) * narrow_panel();
  return scratch_ + narrow_values_ + static_cast<size_t>(index * size);
}

void Block::prepare(ptrdiff_t batch, ptrdiff_t kv_head, float* local) {
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  Cache c = cache(true, batch, kv_head);
  move_past(&c, batch);
  float* panels = key_panels(index);
  if (reads_key_rows()) panels = nullptr;
  const bool bounded = panels && is_masked() && signature_.has(kAttnBias);
  float* greatest = greatest_of(index);
  greatest[0] = NAN;
  if (panels || c.joined) {
    kernels_.prepare_key({key_.of(batch, kv_head), norm(false, batch, kv_head),
                          rope(false, batch, kv_head), c.past, first_new(batch), key_.seq, c.dim,
                          panels, narrow_, c.joined, bounded ? greatest : nullptr, local});
  }
  finish_present(c, batch);
  prepare_value(batch, kv_head);
}

/// Whether a mask may hide enough to look for it.
bool Block::is_masked() const {
  return total_seq_ > kColumnBlock && (signature_.has(kAttnBias) || signature_.has(kAttnMask));
}

void Block::prepare_value(ptrdiff_t batch, ptrdiff_t kv_head) {
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  Cache c = cache(false, batch, kv_head);
  move_past(&c, batch);
  const ptrdiff_t dim = c.dim;
  ValueTask task = {
      value_.of(batch, kv_head), c.past, first_new(batch), value_.seq, dim, nullptr, 0};
  HeadRows rows = task.source;  // what attend will read
  if (c.joined) {
    task.out = c.joined;
    task.out_row = dim;
    kernels_.prepare_value(task);
    if (joined_in_present_) rows = {task.out, dim, kPanel};
  }
  if (!in_place_value_ && !joined_in_present_) {
    task.out = scratch_ + values_ + static_cast<size_t>(index * total_seq_ * value_row_);
    task.out_row = value_row_;
    kernels_.prepare_value(task);
    rows = {task.out, value_row_, kPanel};
  }
  finish_present(c, batch);
  const bool hides = attributes_.is_causal && (key_.seq > 1 || attributes_.window_size > 0);
  const bool may_skip = hides || is_masked();
  greatest_of(index)[1] = may_skip ? kernels_.greatest(rows, used(batch), dim) : NAN;
  if (narrow_)
    kernels_.narrow_value({rows, used(batch), dim, narrow_values(index), narrow_panel()});
}

/// Everything about a query head but its rows.
AttendTask Block::attend_task(ptrdiff_t batch, ptrdiff_t head, float* local) const {
  const ptrdiff_t dim = extent(kHeadDim), value_dim = extent(kVHeadDim);
  const ptrdiff_t kv_head = head / group_, index = batch * kv_heads_ + kv_head;
  HeadRows value = value_.of(batch, kv_head);
  if (joined_in_present_) {
    value = {cache(false, batch, kv_head).joined, value_dim, kPanel};
  } else if (!in_place_value_) {
    value = {scratch_ + values_ + static_cast<size_t>(index * total_seq_ * value_row_), value_row_,
             kPanel};
  }
  AttendTask t = {};
  t.query = query_.of(batch, head);
  t.norm = norm(true, batch, head);
  t.rope = rope(true, batch, head);
  if (reads_key_rows()) {
    t.key = joined_key(batch, kv_head);
  } else {
    t.key_panels = key_panels(index);
  }
  t.value = value.data;
  t.value_row = value.row_stride;
  t.value_panel = value.chunk_stride;
  t.narrow_value = narrow_ ? narrow_values(index) : nullptr;
  t.narrow_panel = narrow_panel();
  t.total = valid(batch);
  t.past = first_new(batch);
  t.dim = dim;
  t.value_dim = value_dim;
  t.bias = term(kAttnBias, batch, head);
  if (t.bias.data) {  // it has a column for each position, the cache may have lost the first ones
    const ptrdiff_t lost = position(batch) - first_new(batch);
    t.bias.data = static_cast<const float*>(t.bias.data) + lost * t.bias.column_stride;
  }
  t.mask = term(kAttnMask, batch, head);
  t.fill = term(kMaskFill, batch, head);
  t.sink = signature_.has(kSinks) ? floats(kSinks) + head : nullptr;
  t.scale = attributes_.scale;
  t.softcap = attributes_.softcap;
  t.causal = attributes_.is_causal != 0;
  t.window = static_cast<ptrdiff_t>(attributes_.window_size);
  t.row_step = 1;
  t.window_ends_inside = signature_.has(kSinks) || attributes_.softcap > 0;
  t.zero_nan = attributes_.zero_nan != 0;
  t.zero_empty = signature_.has(kSeqlensK);
  t.key_bound = greatest_of(index)[0];
  t.skip_masked = greatest_of(index)[1] < INFINITY;
  t.scratch = local;
  return t;
}

void Block::attend(ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row, ptrdiff_t rows, float* local) {
  AttendTask t = attend_task(batch, head, local);
  t.first_row = row;
  t.rows = rows;
  float* context = has_merge_ ? scratch_ + context_ : outputs_.output;
  t.out = context + (batch * q_seq_ + row) * context_stride_ + head * value_.dim;
  t.out_row = context_stride_;
  kernels_.attend(t);
}

/// With one query position the query heads of a kv head can be taken as rows of one head: what
/// differs from head to head then differs from row to row. Causality must not hide anything from
/// them.
bool Block::heads_are_rows() const {
  const bool sees_all = !attributes_.is_causal || key_.seq <= 1;
  return q_seq_ == 1 && group_ > 1 && sees_all && !attributes_.q_norm_over_heads;
}

void Block::attend_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local) {
  const ptrdiff_t first = kv_head * group_;
  if (!heads_are_rows()) {
    for (ptrdiff_t i = 0; i < group_; ++i) attend(batch, first + i, 0, q_seq_, local);
    return;
  }
  AttendTask t = attend_task(batch, first, local);
  const auto across = [&](Operand o) {
    return signature_.has(o) ? stride(tensors_[o], 2) : ptrdiff_t{0};
  };
  t.query.row_stride = query_.head_stride;
  t.norm.weight_row = query_.dim;
  t.rope.cos_row = across(kQCos);
  t.rope.sin_row = across(kQSin);
  t.bias.row_stride = across(kAttnBias);
  t.mask.row_stride = across(kAttnMask);
  t.fill.row_stride = across(kMaskFill);
  t.sink_row = 1;
  t.row_step = 0;
  t.rows = group_;
  float* context = has_merge_ ? scratch_ + context_ : outputs_.output;
  t.out = context + batch * context_stride_ + first * value_.dim;
  t.out_row = value_.dim;
  kernels_.attend(t);
}

}  // namespace onnx_fuse
