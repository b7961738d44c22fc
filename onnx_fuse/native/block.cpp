// What a block needs: the places of its parts in the scratch, and the products, cut into pieces.
#include "block.h"

namespace onnx_fuse {
namespace {

constexpr size_t kLine = 16;  // floats of a cache line

/// Rows of a piece of a product: what shares one pass over the weights.
constexpr ptrdiff_t kRowPiece = 128;
static_assert(kRowPiece % kPackRows == 0, "a piece begins where packed rows do");

/// Query rows to a kv head from which it is worth rounding K and V for them.
constexpr ptrdiff_t kFewestNarrowRows = 16;

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
      positions_(signature, tensors, extents),
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

  plan_attention(present);
  plan_merge();

  for (int i = 0; i < product_count_; ++i) {
    cut(&products_[i]);
    plan_packing(&products_[i]);
  }
  const size_t attend = static_cast<size_t>(kernels.attend_scratch(dim, value_dim));
  const size_t staging = static_cast<size_t>(kPanel * round_to_panel(dim));
  local_size_ = (attend > staging ? attend : staging) / kLine * kLine + kLine;
  local_ = layout_.reserve(static_cast<int64_t>(workers_), static_cast<int64_t>(local_size_));
  shares_ = layout_.reserve(static_cast<int64_t>(workers_), kLine);
}

/// Whether attention reads K's rows. With a few query rows to a kv head it is not worth writing K's
/// panels and reading them again, where K's rows lie in one piece: joined to a cache, or as given.
bool Block::is_key_in_rows(bool joined) const {
  const ptrdiff_t few = heads_are_rows() ? 12 : 8;
  const bool as_given = signature_.has(kKey) && attributes_.k_norm == NormKind::kNone &&
                        !signature_.has(kKCos) && !signature_.has(kPastKey);
  return q_seq_ * group_ <= few && (joined || as_given);
}

/// How K and V come to attention, and in which parts.
void Block::plan_attention(bool present) {
  const ptrdiff_t dim = extent(kHeadDim), value_dim = extent(kVHeadDim);
  const int64_t kv_blocks = static_cast<int64_t>(batch_) * kv_heads_;
  narrow_ = attributes_.precision == Precision::kBf16 && kernels_.narrow_value &&
            q_seq_ * group_ >= kFewestNarrowRows;
  reads_key_rows_ = is_key_in_rows(present);
  if (!reads_key_rows_) {
    key_panels_ = layout_.reserve(kv_blocks, round_to_panel(total_seq_), words_of(dim, narrow_));
  }
  plan_parts();
  if (narrow_) narrow_values_ = layout_.reserve(kv_blocks, panels_of(value_dim), narrow_panel());
  const bool whole_panels = value_dim % kPanel == 0;
  in_place_value_ = !signature_.has(kPastValue) && (value_.projected || whole_panels);
  joined_in_present_ = !in_place_value_ && present && whole_panels;
  value_row_ = round_to_panel(value_dim);
  if (!in_place_value_ && !joined_in_present_) {
    values_ = layout_.reserve(kv_blocks, total_seq_, value_row_);
  }
  if (attributes_.q_norm_over_heads) query_statistics_ = layout_.reserve(batch_, q_seq_, 2);
  if (attributes_.k_norm_over_heads) key_statistics_ = layout_.reserve(batch_, key_.seq, 2);
}

/// K and V in parts for a few rows behind a longer K. A cache of a window's size is short; and a
/// mask may hide most of K, which is only looked for in all of it.
void Block::plan_parts() {
  const int64_t kv_blocks = static_cast<int64_t>(batch_) * kv_heads_;
  const bool few = (q_seq_ == 1 || reads_key_rows_) && total_seq_ > q_seq_;
  const bool masked = signature_.has(kAttnMask) && total_seq_ > kColumnBlock;
  // The more kv heads, the more items there are, and long copies are faster than short ones.
  part_columns_ = kColumnBlock * (kv_heads_ > 2 ? kv_heads_ / 2 : 1);
  parts_ = few && !attributes_.window_cache && !masked ? pieces(total_seq_, part_columns_) : 0;
  if (parts_ > 1) part_results_ = layout_.reserve(kv_blocks, parts_, part_size());
  if (parts_ == 0) greatest_ = layout_.reserve(kv_blocks, 2);
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
/// Pieces of rows that end unevenly want more turns.
void Block::cut(Product* p) const {
  const Gemm& g = p->gemm;
  const ptrdiff_t panels = panels_of(g.columns);
  const ptrdiff_t workers = static_cast<ptrdiff_t>(workers_);
  const bool alone = workers == 1 || p->work() < kWorthSharing;
  p->row_pieces = alone || g.rows <= kRowPiece ? 1 : pieces(g.rows, kRowPiece);
  p->row_piece = pieces(pieces(g.rows, p->row_pieces), kPackRows) * kPackRows;
  const ptrdiff_t wanted = alone ? 1 : pieces((p->row_pieces > 1 ? 8 : 4) * workers, p->row_pieces);
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

}  // namespace onnx_fuse
