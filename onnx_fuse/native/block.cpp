#include "block.h"

#include <math.h>

namespace onnx_fuse {
namespace {

constexpr size_t kLine = 16;  // floats of a cache line

/// Rows of a piece of a product: what shares one pass over the weights.
constexpr ptrdiff_t kRowPiece = 192;
static_assert(kRowPiece % kPackRows == 0, "a piece begins where packed rows do");

/// Query rows to a kv head from which it is worth rounding K and V for them.
constexpr ptrdiff_t kFewestNarrowRows = 16;

ptrdiff_t pieces(ptrdiff_t total, ptrdiff_t piece) { return (total + piece - 1) / piece; }
ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

const void* offset_weight(const Gemm& g, ptrdiff_t elements) {
  if (g.w_is_bfloat16) return static_cast<const uint16_t*>(g.w) + elements;
  return static_cast<const float*>(g.w) + elements;
}

}  // namespace

Gemm slice(const Gemm& g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t panels) {
  Gemm part = g;
  part.a += row * g.a_row;
  part.first_row += row;
  part.w = offset_weight(g, panel * g.w_panel);
  if (part.bias) part.bias += panel * kPanel;
  part.c += row * g.c_row + panel * g.c_panel;
  part.rows = smaller(rows, g.rows - row);
  part.columns = smaller(panels * kPanel, g.columns - panel * kPanel);
  return part;
}

double microseconds(double multiply_adds, double bytes) {
  const double compute = multiply_adds / 40e3, read = bytes / 25e3;
  return compute > read ? compute : read;
}

double Product::work() const {
  const double weights = static_cast<double>(gemm.columns) * static_cast<double>(gemm.depth);
  return microseconds(weights * static_cast<double>(gemm.rows),
                      weights * (gemm.w_is_bfloat16 ? 2 : 4));
}

ptrdiff_t Product::pack_items() const { return is_packed ? pieces(gemm.rows, kPackRows) : 0; }

/// Reading A and writing it again, about a nanosecond for 8 elements.
double Product::pack_work() const {
  return is_packed ? static_cast<double>(gemm.rows) * static_cast<double>(gemm.depth) / 8e3 : 0;
}

size_t Layout::reserve(int64_t a, int64_t b, int64_t c) {
  size_t product = 0;
  overflow |= __builtin_mul_overflow(static_cast<size_t>(a), static_cast<size_t>(b), &product);
  overflow |= __builtin_mul_overflow(product, static_cast<size_t>(c), &product);
  overflow |= product > SIZE_MAX / 64 - used;
  const size_t at = used;
  used += overflow ? 0 : (product + kLine - 1) / kLine * kLine;
  return at;
}

Block::Block(const Signature& signature, const Kernels& kernels, const Extents& extents,
             const Tensor* tensors, bool present, size_t workers)
    : signature_(signature),
      attributes_(signature.attributes),
      kernels_(kernels),
      extents_(extents),
      tensors_(tensors),
      workers_(workers),
      batch_(extent(kBatch)),
      q_seq_(extent(kQSeq)),
      kv_heads_(extent(kKvNumHeads)),
      group_(extent(kNumHeads) / extent(kKvNumHeads)),
      total_seq_(0),
      present_seq_(static_cast<ptrdiff_t>(extents.total_seq())) {
  const ptrdiff_t dim = extent(kHeadDim), value_dim = extent(kVHeadDim);
  query_.seq = q_seq_;
  key_.seq = value_.seq = extent(kKvSeq);
  query_.heads = extent(kNumHeads);
  key_.heads = value_.heads = kv_heads_;
  query_.dim = key_.dim = dim;
  value_.dim = value_dim;
  plan_lengths();

  if (signature.has(kQkvWeight)) {
    plan_joint();
  } else if (signature.has(kQkv)) {
    plan_packed();
  } else {
    plan_stream(&query_, kQuery, kQWeight, kQBias, kHidden, kQColumns);
    plan_stream(&key_, kKey, kKWeight, kKBias, signature.key_source(), kKColumns);
    plan_stream(&value_, kValue, kVWeight, kVBias, signature.value_source(), kVColumns);
  }

  const int64_t kv_blocks = static_cast<int64_t>(batch_) * kv_heads_;
  narrow_ = attributes_.precision == Precision::kBf16 && kernels.narrow_value &&
            q_seq_ * group_ >= kFewestNarrowRows;
  key_panels_ = layout_.reserve(kv_blocks, round_to_panel(total_seq_), words_of(dim, narrow_));
  if (narrow_) narrow_values_ = layout_.reserve(kv_blocks, panels_of(value_dim), narrow_panel());
  greatest_ = layout_.reserve(kv_blocks, 2);
  const bool whole_panels = value_dim % kPanel == 0;
  in_place_value_ = !signature.has(kPastValue) && (value_.projected || whole_panels);
  joined_in_present_ = !in_place_value_ && present && whole_panels;
  value_row_ = round_to_panel(value_dim);
  if (!in_place_value_ && !joined_in_present_) {
    values_ = layout_.reserve(kv_blocks, total_seq_, value_row_);
  }
  if (attributes_.q_norm_over_heads) query_statistics_ = layout_.reserve(batch_, q_seq_, 2);
  if (attributes_.k_norm_over_heads) key_statistics_ = layout_.reserve(batch_, key_.seq, 2);
  plan_merge();

  for (int i = 0; i < product_count_; ++i) {
    cut(&products_[i]);
    plan_packing(&products_[i]);
  }
  const size_t attend = static_cast<size_t>(kernels.attend_scratch(dim, value_dim));
  const size_t staging = static_cast<size_t>(kPanel * round_to_panel(dim));
  local_size_ = (attend > staging ? attend : staging) / kLine * kLine + kLine;
  local_ = layout_.reserve(static_cast<int64_t>(workers_), static_cast<int64_t>(local_size_));
}

/// source * weight + bias without a place for the result.
Gemm Block::product(Operand source, Operand weight, Operand bias, Extent columns) const {
  const Tensor& a = tensors_[source];
  Gemm g = {};
  g.a = static_cast<const float*>(a.data);
  g.depth = static_cast<ptrdiff_t>(a.dims[2]);
  g.a_row = g.depth;
  g.rows = static_cast<ptrdiff_t>(a.dims[0] * a.dims[1]);
  g.columns = extent(columns);
  g.w = tensors_[weight].data;
  g.w_is_bfloat16 = tensors_[weight].type == kBfloat16;
  g.w_row = kPanel;
  g.w_panel = g.depth * kPanel;
  g.bias = floats(bias);
  g.precision = attributes_.precision;
  return g;
}

void Block::add_product(const Gemm& gemm, size_t scratch) {
  Product& p = products_[product_count_++];
  p.gemm = gemm;
  p.scratch = scratch;
}

/// How the heads of a projection lie. Where each head begins at a panel, C is kept in panels: V is
/// then read as a weight is, K is transposed from squares that lie in one piece. Otherwise it is
/// kept in rows.
void Block::place_product(Gemm* g, bool whole_heads) {
  if (whole_heads) {
    g->c_row = kPanel;
    g->c_panel = g->rows * kPanel;
    add_product(*g, layout_.reserve(g->rows, g->columns));
  } else {
    g->c_row = round_to_panel(g->columns) + kPanel;  // the last head's last panel is read whole
    g->c_panel = kPanel;
    add_product(*g, layout_.reserve(g->rows, g->c_row));
  }
}

/// The heads of `s` in a product's result, from its column `first` on.
void Block::find_heads(Stream* s, const Product& p, ptrdiff_t first) {
  const bool panels = p.gemm.c_row == kPanel;
  s->projected = true;
  s->row_stride = p.gemm.c_row;
  s->chunk_stride = p.gemm.c_panel;
  s->head_stride = panels ? p.gemm.rows * s->dim : s->dim;
  s->batch_stride = s->seq * s->row_stride;
  s->scratch = p.scratch + static_cast<size_t>(panels ? p.gemm.rows * first : first);
}

void Block::plan_stream(Stream* s, Operand tensor, Operand weight, Operand bias, Operand source,
                        Extent columns) {
  if (signature_.has(tensor)) {
    s->data = floats(tensor);
    s->row_stride = s->dim;
    s->chunk_stride = kPanel;
    s->head_stride = s->seq * s->dim;
    s->batch_stride = s->heads * s->head_stride;
    return;
  }
  Gemm g = product(source, weight, bias, columns);
  place_product(&g, s->dim % kPanel == 0);
  find_heads(s, products_[product_count_ - 1], 0);
}

/// Q, K and V of one weight.
void Block::plan_joint() {
  Gemm g = product(kHidden, kQkvWeight, kQkvBias, kQkvColumns);
  place_product(&g, query_.dim % kPanel == 0 && value_.dim % kPanel == 0);
  const ptrdiff_t q_columns = extent(kQColumns), k_columns = extent(kKColumns);
  find_heads(&query_, products_[0], 0);
  find_heads(&key_, products_[0], q_columns);
  find_heads(&value_, products_[0], q_columns + k_columns);
}

/// Q, K and V side by side in one tensor.
void Block::plan_packed() {
  const float* first = floats(kQkv);
  Stream* const streams[] = {&query_, &key_, &value_};
  for (Stream* s : streams) {
    s->data = first;
    s->row_stride = extent(kQkvColumns);
    s->chunk_stride = kPanel;
    s->head_stride = s->dim;
    s->batch_stride = s->seq * s->row_stride;
    first += s->heads * s->dim;
  }
}

void Block::plan_merge() {
  const ptrdiff_t width = extent(kNumHeads) * extent(kVHeadDim);
  has_merge_ = signature_.has(kOutWeight);
  // An odd number of cache lines spreads the rows over the sets of L1.
  context_stride_ = has_merge_ ? round_to_panel(width) / kPanel * kPanel + kPanel : width;
  if (!has_merge_) return;
  context_ = layout_.reserve(batch_, q_seq_, context_stride_);
  Gemm& g = merge_.gemm;
  g.a_row = context_stride_;
  g.rows = batch_ * q_seq_;
  g.depth = width;
  g.columns = extent(kOutSize);
  g.w = tensors_[kOutWeight].data;
  g.w_is_bfloat16 = tensors_[kOutWeight].type == kBfloat16;
  g.w_row = kPanel;
  g.w_panel = width * kPanel;
  g.bias = floats(kOutBias);
  g.precision = attributes_.precision;
  g.c_row = g.columns;
  g.c_panel = kPanel;
  cut(&merge_);
  plan_packing(&merge_);
}

void Block::plan_packing(Product* p) {
  p->gemm.packed_rows = p->gemm.rows;
  const size_t floats = kernels_.packed_floats(p->gemm);
  p->is_packed = floats > 0;
  p->packed_scratch = layout_.reserve(static_cast<int64_t>(floats));
}

/// Pieces for several turns of each worker, so that a late one costs little; whole when serial.
void Block::cut(Product* p) const {
  const Gemm& g = p->gemm;
  const ptrdiff_t panels = panels_of(g.columns);
  const ptrdiff_t workers = static_cast<ptrdiff_t>(workers_);
  const bool alone = workers == 1 || p->work() < kWorthSharing;
  p->row_pieces = alone || g.rows <= kRowPiece ? 1 : pieces(g.rows, kRowPiece);
  p->row_piece = pieces(pieces(g.rows, p->row_pieces), kPackRows) * kPackRows;
  const ptrdiff_t wanted = alone ? 1 : pieces(4 * workers, p->row_pieces);
  p->panel_piece = alone ? panels : pieces(pieces(panels, wanted), 4) * 4;
  p->panel_pieces = p->panel_piece > 0 ? pieces(panels, p->panel_piece) : 0;
}

/// Whether the workers get about the same if each takes one item at a time.
bool Block::is_even(ptrdiff_t items) const {
  const ptrdiff_t workers = static_cast<ptrdiff_t>(workers_);
  const ptrdiff_t turns = pieces(items, workers);
  return static_cast<double>(items) >= 0.85 * static_cast<double>(turns * workers);
}

bool Block::scratch_bytes(size_t* bytes) const {
  *bytes = layout_.used * sizeof(float);
  return !layout_.overflow;
}

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

/// Elements from one index to the next along an axis counted from the last; 0 where broadcast.
static ptrdiff_t stride(const Tensor& t, int from_last) {
  const int axis = t.rank - 1 - from_last;
  if (axis < 0 || t.dims[axis] == 1) return 0;
  int64_t elements = 1;
  for (int i = axis + 1; i < t.rank; ++i) elements *= t.dims[i];
  return static_cast<ptrdiff_t>(elements);
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
  const ptrdiff_t size = present_seq_ * key_.dim;
  return {outputs_.present_key + (batch * kv_heads_ + kv_head) * size, key_.dim, kPanel};
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
  const ptrdiff_t dim = extent(kHeadDim), past = extent(kPastSeq);
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  const float* past_key = floats(kPastKey);
  float* panels = key_panels(index);
  float* present =
      outputs_.present_key ? outputs_.present_key + index * present_seq_ * dim : nullptr;
  if (reads_key_rows()) panels = nullptr;
  const bool bounded = panels && is_masked() && signature_.has(kAttnBias);
  float* greatest = greatest_of(index);
  greatest[0] = NAN;
  if (panels || present) {
    kernels_.prepare_key(
        {key_.of(batch, kv_head), norm(false, batch, kv_head), rope(false, batch, kv_head),
         past_key ? past_key + index * past * dim : nullptr, first_new(batch), key_.seq, dim,
         panels, narrow_, present, bounded ? greatest : nullptr, local});
  }
  if (present && outputs_.present_key != past_key) clear_unused(present, batch, dim);
  prepare_value(batch, kv_head);
}

/// Whether a mask may hide enough to look for it.
bool Block::is_masked() const {
  return total_seq_ > kColumnBlock && (signature_.has(kAttnBias) || signature_.has(kAttnMask));
}

void Block::prepare_value(ptrdiff_t batch, ptrdiff_t kv_head) {
  const ptrdiff_t dim = extent(kVHeadDim), past = extent(kPastSeq);
  const ptrdiff_t index = batch * kv_heads_ + kv_head;
  const float* past_value = floats(kPastValue);
  ValueTask task = {value_.of(batch, kv_head),
                    past_value ? past_value + index * past * dim : nullptr,
                    first_new(batch),
                    value_.seq,
                    dim,
                    nullptr,
                    0};
  HeadRows rows = task.source;  // what attend will read
  if (outputs_.present_value) {
    task.out = outputs_.present_value + index * present_seq_ * dim;
    task.out_row = dim;
    kernels_.prepare_value(task);
    if (outputs_.present_value != past_value) clear_unused(task.out, batch, dim);
    if (joined_in_present_) rows = {task.out, dim, kPanel};
  }
  if (!in_place_value_ && !joined_in_present_) {
    task.out = scratch_ + values_ + static_cast<size_t>(index * total_seq_ * value_row_);
    task.out_row = value_row_;
    kernels_.prepare_value(task);
    rows = {task.out, value_row_, kPanel};
  }
  const bool may_skip = attributes_.is_causal || is_masked();
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
    value = {outputs_.present_value + index * present_seq_ * value_dim, value_dim, kPanel};
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
  t.mask = term(kAttnMask, batch, head);
  t.fill = term(kMaskFill, batch, head);
  t.sink = signature_.has(kSinks) ? floats(kSinks) + head : nullptr;
  t.scale = attributes_.scale;
  t.softcap = attributes_.softcap;
  t.causal = attributes_.is_causal != 0;
  t.zero_nan = attributes_.zero_nan != 0;
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
  t.causal = false;
  t.rows = group_;
  float* context = has_merge_ ? scratch_ + context_ : outputs_.output;
  t.out = context + batch * context_stride_ + first * value_.dim;
  t.out_row = value_.dim;
  kernels_.attend(t);
}

}  // namespace onnx_fuse
