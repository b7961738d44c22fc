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

float* Block::key_panels(ptrdiff_t index) const {
  const ptrdiff_t size = round_to_panel(total_seq_) * words_of(key_.dim, narrow_);
  return scratch_ + key_panels_ + static_cast<size_t>(index * size);
}

float* Block::narrow_values(ptrdiff_t index) const {
  const ptrdiff_t size = panels_of(value_.dim) * narrow_panel();
  return scratch_ + narrow_values_ + static_cast<size_t>(index * size);
}

/// K's rows where attention reads them as such.
HeadRows Block::key_rows(ptrdiff_t batch, ptrdiff_t kv_head) const {
  if (!outputs_.present_key) return key_.of(batch, kv_head);
  return {joined(true, batch, kv_head), key_.dim, kPanel};
}

HeadRows Block::value_rows(ptrdiff_t batch, ptrdiff_t kv_head) const {
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  if (in_place_value_) return value_.of(batch, kv_head);
  if (joined_in_present_) return {joined(false, batch, kv_head), value_.dim, kPanel};
  return {scratch_ + values_ + static_cast<size_t>(index * total_seq_ * value_row_), value_row_,
          kPanel};
}

/// Positions [begin, end) of K as attention reads them, and as a cache.
void Block::join_keys(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                      ptrdiff_t end, float* greatest, float* local) {
  KeyTask task = {};
  task.source = key_.of(batch, kv_head);
  task.norm = norm(false, batch, kv_head);
  task.rope = rope(false, batch, kv_head);
  task.past = cache.past;
  task.past_seq = positions_.first_new(batch);
  task.seq = key_.seq;
  task.dim = cache.dim;
  task.panels = reads_key_rows_ ? nullptr : key_panels(batch * kv_heads_ + kv_head);
  task.narrow = narrow_;
  task.present = cache.joined;
  task.greatest = greatest;
  task.staging = local;
  task.begin = begin;
  task.end = end;
  if (task.panels || task.present) kernels_.prepare_key(task);
}

/// The same of V.
void Block::join_values(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                        ptrdiff_t end) {
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  ValueTask task = {};
  task.source = value_.of(batch, kv_head);
  task.past = cache.past;
  task.past_seq = positions_.first_new(batch);
  task.seq = value_.seq;
  task.dim = cache.dim;
  task.begin = begin;
  task.end = end;
  if (cache.joined) {
    task.out = cache.joined;
    task.out_row = cache.dim;
    kernels_.prepare_value(task);
  }
  if (!in_place_value_ && !joined_in_present_) {
    task.out = scratch_ + values_ + static_cast<size_t>(index * total_seq_ * value_row_);
    task.out_row = value_row_;
    kernels_.prepare_value(task);
  }
}

/// V's rows from position `begin` on as bfloat16: a multiple of a tile's depth.
void Block::round_values(const HeadRows& rows, ptrdiff_t count, ptrdiff_t index, ptrdiff_t begin) {
  float* out = narrow_values(index) + words_of(begin, true) * kPanel;
  kernels_.narrow_value({rows, count, extent(kVHeadDim), out, narrow_panel()});
}

/// Positions [begin, end) of K and V as attention reads them; the first ones also with all else
/// that a cache wants. `greatest` is K's, or null. Returns V's rows from `begin` on.
HeadRows Block::join(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin, ptrdiff_t end,
                     float* greatest, float* local) {
  Cache keys = cache(true, batch, kv_head), values = cache(false, batch, kv_head);
  move_past(&keys, batch);
  move_past(&values, batch);
  join_keys(keys, batch, kv_head, begin, end, greatest, local);
  join_values(values, batch, kv_head, begin, end);
  if (begin == 0) finish_present(keys, batch);
  if (begin == 0) finish_present(values, batch);
  HeadRows rows = value_rows(batch, kv_head);
  rows.data += begin * rows.row_stride;
  if (narrow_) round_values(rows, end - begin, batch * kv_heads_ + kv_head, begin);
  return rows;
}

void Block::prepare(ptrdiff_t batch, ptrdiff_t kv_head, float* local) {
  float* greatest = greatest_of(batch * kv_heads_ + kv_head);
  const bool bounded = is_masked() && signature_.has(kAttnBias);
  greatest[0] = NAN;
  const HeadRows values =
      join(batch, kv_head, 0, positions_.used(batch), bounded ? greatest : nullptr, local);
  const bool may_skip = hides() || is_masked();
  greatest[1] = may_skip ? kernels_.greatest(values, positions_.used(batch), value_.dim) : NAN;
}

/// Whether causality or a window hides anything.
bool Block::hides() const {
  return attributes_.is_causal && (key_.seq > 1 || attributes_.window_size > 0);
}

/// Whether a mask may hide enough to look for it.
bool Block::is_masked() const {
  return total_seq_ > kColumnBlock && (signature_.has(kAttnBias) || signature_.has(kAttnMask));
}

/// All rows of a query head.
AttendTask Block::attend_task(ptrdiff_t batch, ptrdiff_t head, float* local) const {
  const ptrdiff_t kv_head = head / group_, index = batch * kv_heads_ + kv_head;
  const HeadRows value = value_rows(batch, kv_head);
  AttendTask t = {};
  t.query = query_.of(batch, head);
  t.norm = norm(true, batch, head);
  t.rope = rope(true, batch, head);
  if (reads_key_rows_) {
    t.key = key_rows(batch, kv_head);
  } else {
    t.key_panels = key_panels(index);
  }
  t.value = value.data;
  t.value_row = value.row_stride;
  t.value_panel = value.chunk_stride;
  t.narrow_value = narrow_ ? narrow_values(index) : nullptr;
  t.narrow_panel = narrow_panel();
  t.rows = q_seq_;
  t.total = positions_.valid(batch);
  t.past = positions_.first_new(batch);
  t.dim = extent(kHeadDim);
  t.value_dim = extent(kVHeadDim);
  t.bias = term(kAttnBias, batch, head);
  if (t.bias.data) {  // it has a column for each position, the cache may have lost the first ones
    const ptrdiff_t lost = positions_.begin(batch) - positions_.first_new(batch);
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
  float* context = has_merge_ ? scratch_ + context_ : outputs_.output;
  t.out = context + batch * q_seq_ * context_stride_ + head * value_.dim;
  t.out_row = context_stride_;
  t.scratch = local;
  return t;
}

/// The query heads of a kv head as rows of one head, where there is one query position: what
/// differs from head to head differs from row to row then.
AttendTask Block::group_task(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const {
  AttendTask t = attend_task(batch, kv_head * group_, local);
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
  t.out_row = value_.dim;
  return t;
}

/// Whether group_task will do. Causality must not hide anything from a row.
bool Block::heads_are_rows() const {
  const bool sees_all = !attributes_.is_causal || key_.seq <= 1;
  return q_seq_ == 1 && group_ > 1 && sees_all && !attributes_.q_norm_over_heads;
}

/// Calls f with the tasks of a kv head's query heads, and the number of each one's first row.
template <class F>
void Block::for_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local, F f) const {
  if (heads_are_rows()) {
    AttendTask t = group_task(batch, kv_head, local);
    return f(t, ptrdiff_t{0});
  }
  for (ptrdiff_t i = 0; i < group_; ++i) {
    AttendTask t = attend_task(batch, kv_head * group_ + i, local);
    f(t, i * q_seq_);
  }
}

/// A task over what `prepare` has prepared.
void Block::attend(AttendTask& t, ptrdiff_t batch, ptrdiff_t kv_head) {
  const float* greatest = greatest_of(batch * kv_heads_ + kv_head);
  t.key_bound = greatest[0];
  t.skip_masked = greatest[1] < INFINITY;
  kernels_.attend(t);
}

void Block::attend(ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row, ptrdiff_t rows, float* local) {
  AttendTask t = attend_task(batch, head, local);
  t.first_row = row;
  t.rows = rows;
  t.out += row * t.out_row;
  attend(t, batch, head / group_);
}

void Block::attend_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local) {
  for_group(batch, kv_head, local, [&](AttendTask& t, ptrdiff_t) { attend(t, batch, kv_head); });
}

float* Block::part_results(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part) const {
  const ptrdiff_t at = (batch * kv_heads_ + kv_head) * parts_ + part;
  return scratch_ + part_results_ + static_cast<size_t>(at * part_size());
}

/// Parts of what a batch's rows may see. One needs no combining, whatever the other batches have.
ptrdiff_t Block::seen_parts(ptrdiff_t batch) const {
  return pieces(positions_.valid(batch), part_columns_);
}

/// K and V of a part's positions are joined and read, while they are in the caches.
void Block::attend_part(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part, float* local) {
  const ptrdiff_t begin = part * part_columns_, left = positions_.used(batch) - begin;
  if (left <= 0) return;  // another batch is longer
  const ptrdiff_t rows = left < part_columns_ ? left : part_columns_;
  const HeadRows values = join(batch, kv_head, begin, begin + rows, nullptr, local);
  if (part >= seen_parts(batch)) return;
  const bool skip = hides() && kernels_.greatest(values, rows, value_.dim) < INFINITY;
  const ptrdiff_t end =
      begin + rows < positions_.valid(batch) ? begin + rows : positions_.valid(batch);
  for_group(batch, kv_head, local, [&](AttendTask& t, ptrdiff_t first_row) {
    t.key_bound = NAN;
    t.skip_masked = skip;
    if (seen_parts(batch) > 1) {
      float* results = part_results(batch, kv_head, part) + first_row * part_row(value_.dim);
      t.part = {results, begin, end};
    }
    kernels_.attend(t);
  });
}

void Block::combine_parts(ptrdiff_t batch, ptrdiff_t kv_head, float* local) {
  if (seen_parts(batch) <= 1) return;
  for_group(batch, kv_head, local, [&](AttendTask& t, ptrdiff_t first_row) {
    t.part.results = part_results(batch, kv_head, 0) + first_row * part_row(value_.dim);
    kernels_.combine(t, seen_parts(batch), part_size());
  });
}

}  // namespace onnx_fuse
