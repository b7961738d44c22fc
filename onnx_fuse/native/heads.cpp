#include "heads.h"

#include <math.h>

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

/// Multiplies a task's rows by its gate, once no part of them is left to combine.
void apply_gate(const AttendTask& t) {
  if (!t.gate.data) return;
  const float* gate = static_cast<const float*>(t.gate.data) + t.first_row * t.gate.row_stride;
  for (ptrdiff_t row = 0; row < t.rows; ++row, gate += t.gate.row_stride) {
    float* out = t.out + row * t.out_row;
    if (t.gate.column_stride == 0) {
      const float factor = gate[0];
      for (ptrdiff_t i = 0; i < t.value_dim; ++i) out[i] *= factor;
    } else {
      for (ptrdiff_t i = 0; i < t.value_dim; ++i) out[i] *= gate[i];
    }
  }
}

/// The stream with the address of what is in the scratch.
Stream placed(Stream s, float* scratch) {
  if (s.projected) s.data = scratch + s.scratch;
  return s;
}

}  // namespace

Heads::Heads(const Plan& plan, float* scratch)
    : plan_(plan),
      scratch_(scratch),
      query_(placed(plan.query, scratch)),
      key_(placed(plan.key, scratch)),
      value_(placed(plan.value, scratch)) {}

void Heads::measure(bool of_query, ptrdiff_t batch, ptrdiff_t row, ptrdiff_t rows) const {
  const Attributes& a = plan_.attributes;
  const Stream& s = of_query ? query_ : key_;
  HeadRows source = s.of(batch, 0);
  source.data += row * source.row_stride;
  plan_.kernels.row_statistics(
      {source, s.head_stride, s.heads, s.dim, rows, of_query ? a.q_norm : a.k_norm,
       of_query ? a.q_norm_epsilon : a.k_norm_epsilon, statistics_of(of_query, batch) + 2 * row});
}

float* Heads::statistics_of(bool of_query, ptrdiff_t batch) const {
  if (of_query) return scratch_ + plan_.at.query_statistics + 2 * batch * query_.seq;
  return scratch_ + plan_.at.key_statistics + 2 * batch * key_.seq;
}

Norm Heads::norm(bool of_query, ptrdiff_t batch, ptrdiff_t head) const {
  const Attributes& a = plan_.attributes;
  const ptrdiff_t dim = extent(kHeadDim);
  const float* weight = floats(of_query ? kQNormWeight : kKNormWeight);
  const float* bias = floats(of_query ? kQNormBias : kKNormBias);
  const bool over_heads = of_query ? a.q_norm_over_heads : a.k_norm_over_heads;
  return {of_query ? a.q_norm : a.k_norm,
          weight ? weight + head * dim : nullptr,
          bias ? bias + head * dim : nullptr,
          0,
          of_query ? a.q_norm_epsilon : a.k_norm_epsilon,
          over_heads ? statistics_of(of_query, batch) : nullptr};
}

Rope Heads::rope(bool of_query, ptrdiff_t batch, ptrdiff_t head) const {
  const ptrdiff_t dims = extent(kRotaryDim);
  if (plan_.signature.has(kCosCache)) {
    const float* cos = scratch_ + plan_.at.tables + batch * plan_.q_seq * dims;
    return {cos,  cos + plan_.batch * plan_.q_seq * dims, dims, dims,
            dims, plan_.attributes.interleaved != 0};
  }
  const Operand cos = of_query ? kQCos : kKCos, sin = of_query ? kQSin : kKSin;
  if (!plan_.signature.has(cos)) return {};
  const Tensor& c = plan_.tensors[cos];
  const Tensor& s = plan_.tensors[sin];
  return {floats(cos) + batch * stride(c, 3) + head * stride(c, 2),
          floats(sin) + batch * stride(s, 3) + head * stride(s, 2),
          stride(c, 1),
          stride(s, 1),
          dims,
          plan_.attributes.interleaved != 0};
}

ScoreTerm Heads::term(Operand o, ptrdiff_t batch, ptrdiff_t head) const {
  if (!plan_.signature.has(o)) return {};
  const Tensor& t = plan_.tensors[o];
  const ptrdiff_t size = t.type == kBool ? 1 : sizeof(float);
  const ptrdiff_t first = batch * stride(t, 3) + head * stride(t, 2);
  return {static_cast<const char*>(t.data) + first * size, stride(t, 1), stride(t, 0)};
}

ScoreTerm Heads::gate(ptrdiff_t batch, ptrdiff_t head) const {
  if (!plan_.signature.has(kGate)) return {};
  const Tensor& t = plan_.tensors[kGate];
  return {floats(kGate) + batch * stride(t, 3) + head * stride(t, 1), stride(t, 2), stride(t, 0)};
}

float* Heads::key_panels(const KvHead& kv) const {
  const ptrdiff_t size = round_to_panel(plan_.total_seq) * words_of(key_.dim, plan_.narrow);
  return scratch_ + plan_.at.key_panels + static_cast<size_t>(kv.index * size);
}

float* Heads::narrow_values(const KvHead& kv) const {
  const ptrdiff_t size = panels_of(value_.dim) * plan_.narrow_panel();
  return scratch_ + plan_.at.narrow_values + static_cast<size_t>(kv.index * size);
}

/// K's rows where attention reads them as such.
HeadRows Heads::key_rows(const KvHead& kv) const {
  if (!plan_.outputs.present_key) return key_.of(kv.batch, kv.head);
  return {joined(kv, true), key_.dim, kPanel};
}

HeadRows Heads::value_rows(const KvHead& kv) const {
  if (plan_.in_place_value) return value_.of(kv.batch, kv.head);
  if (plan_.joined_in_present) return {joined(kv, false), value_.dim, kPanel};
  return {scratch_ + plan_.at.values +
              static_cast<size_t>(kv.index * plan_.total_seq * plan_.value_row),
          plan_.value_row, kPanel};
}

/// Positions [begin, end) of K as attention reads them, and as a cache.
void Heads::join_keys(const KvHead& kv, const Cache& cache, ptrdiff_t begin, ptrdiff_t end,
                      float* greatest) const {
  KeyTask task = {};
  task.source = key_.of(kv.batch, kv.head);
  task.norm = norm(false, kv.batch, kv.head);
  task.rope = rope(false, kv.batch, kv.head);
  task.past = cache.past;
  task.past_seq = plan_.positions.first_new(kv.batch);
  task.seq = key_.seq;
  task.dim = cache.dim;
  task.panels = plan_.reads_key_rows ? nullptr : key_panels(kv);
  task.narrow = plan_.narrow;
  task.present = cache.joined;
  task.greatest = greatest;
  task.staging = kv.local;
  task.begin = begin;
  task.end = end;
  if (task.panels || task.present) plan_.kernels.prepare_key(task);
}

/// The same of V.
void Heads::join_values(const KvHead& kv, const Cache& cache, ptrdiff_t begin,
                        ptrdiff_t end) const {
  ValueTask task = {};
  task.source = value_.of(kv.batch, kv.head);
  task.past = cache.past;
  task.past_seq = plan_.positions.first_new(kv.batch);
  task.seq = value_.seq;
  task.dim = cache.dim;
  task.begin = begin;
  task.end = end;
  if (cache.joined) {
    task.out = cache.joined;
    task.out_row = cache.dim;
    plan_.kernels.prepare_value(task);
  }
  if (!plan_.in_place_value && !plan_.joined_in_present) {
    task.out = scratch_ + plan_.at.values +
               static_cast<size_t>(kv.index * plan_.total_seq * plan_.value_row);
    task.out_row = plan_.value_row;
    plan_.kernels.prepare_value(task);
  }
}

/// V's rows from position `begin` on as bfloat16: a multiple of a tile's depth.
void Heads::round_values(const KvHead& kv, const HeadRows& rows, ptrdiff_t begin,
                         ptrdiff_t count) const {
  float* out = narrow_values(kv) + words_of(begin, true) * kPanel;
  plan_.kernels.narrow_value({rows, count, extent(kVHeadDim), out, plan_.narrow_panel()});
}

/// Positions [begin, end) of K and V as attention reads them; the first ones also with all else
/// that a cache wants. `greatest` is K's, or null. Returns V's rows from `begin` on.
HeadRows Heads::join(const KvHead& kv, ptrdiff_t begin, ptrdiff_t end, float* greatest) const {
  Cache keys = cache(kv, true), values = cache(kv, false);
  move_past(&keys, kv.batch);
  move_past(&values, kv.batch);
  join_keys(kv, keys, begin, end, greatest);
  join_values(kv, values, begin, end);
  if (begin == 0) finish_present(keys, kv.batch);
  if (begin == 0) finish_present(values, kv.batch);
  HeadRows rows = value_rows(kv);
  rows.data += begin * rows.row_stride;
  if (plan_.narrow) round_values(kv, rows, begin, end - begin);
  return rows;
}

void Heads::prepare(const KvHead& kv) const {
  float* greatest = greatest_of(kv);
  const bool bounded = plan_.is_masked() && plan_.signature.has(kAttnBias);
  greatest[0] = NAN;
  const HeadRows values = join(kv, 0, plan_.positions.used(kv.batch), bounded ? greatest : nullptr);
  const bool may_skip = plan_.hides() || plan_.is_masked();
  greatest[1] =
      may_skip ? plan_.kernels.greatest(values, plan_.positions.used(kv.batch), value_.dim) : NAN;
}

/// All rows of one of a kv head's query heads.
AttendTask Heads::attend_task(const KvHead& kv, ptrdiff_t member) const {
  const ptrdiff_t batch = kv.batch, head = kv.head * plan_.group + member;
  const HeadRows value = value_rows(kv);
  AttendTask t = {};
  t.query = query_.of(batch, head);
  t.norm = norm(true, batch, head);
  t.rope = rope(true, batch, head);
  if (plan_.reads_key_rows) {
    t.key = key_rows(kv);
  } else {
    t.key_panels = key_panels(kv);
  }
  t.value = value.data;
  t.value_row = value.row_stride;
  t.value_panel = value.chunk_stride;
  t.narrow_value = plan_.narrow ? narrow_values(kv) : nullptr;
  t.narrow_panel = plan_.narrow_panel();
  t.rows = plan_.q_seq;
  t.total = plan_.positions.valid(batch);
  t.past = plan_.positions.first_new(batch);
  t.dim = extent(kHeadDim);
  t.value_dim = extent(kVHeadDim);
  t.bias = term(kAttnBias, batch, head);
  if (t.bias.data) {  // it has a column for each position, the cache may have lost the first ones
    const ptrdiff_t lost = plan_.positions.begin(batch) - plan_.positions.first_new(batch);
    t.bias.data = static_cast<const float*>(t.bias.data) + lost * t.bias.column_stride;
  }
  t.mask = term(kAttnMask, batch, head);
  t.fill = term(kMaskFill, batch, head);
  t.sink = plan_.signature.has(kSinks) ? floats(kSinks) + head : nullptr;
  t.scale = plan_.attributes.scale;
  t.softcap = plan_.attributes.softcap;
  t.causal = plan_.attributes.is_causal != 0;
  t.window = static_cast<ptrdiff_t>(plan_.attributes.window_size);
  t.row_step = 1;
  t.window_ends_inside = plan_.signature.has(kSinks) || plan_.attributes.softcap > 0;
  t.zero_nan = plan_.attributes.zero_nan == 1;
  t.zero_empty = plan_.attributes.zero_nan == 2 || plan_.signature.has(kSeqlensK);
  float* context = plan_.has_merge ? scratch_ + plan_.at.context : plan_.outputs.output;
  t.out = context + batch * plan_.q_seq * plan_.context_stride + head * value_.dim;
  t.out_row = plan_.context_stride;
  if (plan_.outputs.attn_weights) {
    const ptrdiff_t first_row = (batch * query_.heads + head) * plan_.q_seq;
    t.weights = plan_.outputs.attn_weights + first_row * plan_.total_seq;
  }
  t.gate = gate(batch, head);
  t.scratch = kv.local;
  return t;
}

/// The query heads of a kv head as rows of one head, where there is one query position: what
/// differs from head to head differs from row to row then.
AttendTask Heads::group_task(const KvHead& kv) const {
  AttendTask t = attend_task(kv, 0);
  const auto across = [&](Operand o, int from_last = 2) {
    return plan_.signature.has(o) ? stride(plan_.tensors[o], from_last) : ptrdiff_t{0};
  };
  t.query.row_stride = query_.head_stride;
  t.norm.weight_row = query_.dim;
  t.rope.cos_row = across(kQCos);
  t.rope.sin_row = across(kQSin);
  t.bias.row_stride = across(kAttnBias);
  t.mask.row_stride = across(kAttnMask);
  t.fill.row_stride = across(kMaskFill);
  t.gate.row_stride = across(kGate, 1);
  t.sink_row = 1;
  t.row_step = 0;
  t.rows = plan_.group;
  t.out_row = value_.dim;
  return t;
}

/// Calls f with the tasks of a kv head's query heads, and the number of each one's first row.
template <class F>
void Heads::for_group(const KvHead& kv, F f) const {
  if (plan_.heads_are_rows()) {
    AttendTask t = group_task(kv);
    return f(t, ptrdiff_t{0});
  }
  for (ptrdiff_t i = 0; i < plan_.group; ++i) {
    AttendTask t = attend_task(kv, i);
    f(t, i * plan_.q_seq);
  }
}

/// A task over what `prepare` has prepared.
void Heads::attend_prepared(const KvHead& kv, AttendTask* t) const {
  const float* greatest = greatest_of(kv);
  t->key_bound = greatest[0];
  t->skip_masked = greatest[1] < INFINITY;
  plan_.kernels.attend(*t);
  apply_gate(*t);
}

void Heads::attend(const KvHead& kv, ptrdiff_t member, ptrdiff_t row, ptrdiff_t rows) const {
  AttendTask t = attend_task(kv, member);
  t.first_row = row;
  t.rows = rows;
  t.out += row * t.out_row;
  if (t.weights) t.weights += row * t.total;
  attend_prepared(kv, &t);
}

void Heads::attend_group(const KvHead& kv) const {
  for_group(kv, [&](AttendTask& t, ptrdiff_t) { attend_prepared(kv, &t); });
}

float* Heads::part_results(const KvHead& kv, ptrdiff_t part) const {
  const ptrdiff_t at = kv.index * plan_.parts + part;
  return scratch_ + plan_.at.part_results + static_cast<size_t>(at * plan_.part_size());
}

/// Parts of what a batch's rows may see. One needs no combining, whatever the other batches have.
ptrdiff_t Heads::seen_parts(ptrdiff_t batch) const {
  return pieces(plan_.positions.valid(batch), plan_.part_columns);
}

/// K and V of a part's positions are joined and read, while they are in the caches.
void Heads::attend_part(const KvHead& kv, ptrdiff_t part) const {
  const ptrdiff_t begin = part * plan_.part_columns, left = plan_.positions.used(kv.batch) - begin;
  if (left <= 0) return;  // another batch is longer
  const ptrdiff_t rows = smaller(left, plan_.part_columns);
  const HeadRows values = join(kv, begin, begin + rows, nullptr);
  if (part >= seen_parts(kv.batch)) return;
  const bool skip = plan_.hides() && plan_.kernels.greatest(values, rows, value_.dim) < INFINITY;
  const ptrdiff_t end = smaller(begin + rows, plan_.positions.valid(kv.batch));
  for_group(kv, [&](AttendTask& t, ptrdiff_t first_row) {
    t.key_bound = NAN;
    t.skip_masked = skip;
    if (seen_parts(kv.batch) > 1) {
      float* results = part_results(kv, part) + first_row * part_row(value_.dim);
      t.part = {results, begin, end};
    }
    plan_.kernels.attend(t);
    if (!t.part.results) apply_gate(t);
  });
}

void Heads::combine_parts(const KvHead& kv) const {
  if (seen_parts(kv.batch) <= 1) return;
  for_group(kv, [&](AttendTask& t, ptrdiff_t first_row) {
    t.part.results = part_results(kv, 0) + first_row * part_row(value_.dim);
    plan_.kernels.combine(t, seen_parts(kv.batch), plan_.part_size());
    apply_gate(t);
  });
}

}  // namespace onnx_fuse
