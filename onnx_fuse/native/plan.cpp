#include "plan.h"

#include <stdint.h>

#include "crew.h"

namespace onnx_fuse {
namespace {

constexpr size_t kLine = 16;  // floats of a cache line

/// Rows of a piece of a product: what shares one pass over the weights.
constexpr ptrdiff_t kRowPiece = 128;
static_assert(kRowPiece % kPackRows == 0, "a piece begins where packed rows do");

/// Query rows to a kv head from which it is worth rounding K and V for them.
constexpr ptrdiff_t kFewestNarrowRows = 16;

/// Panels of a piece, a multiple of a tile's four, for about `wanted` pieces of a row piece or up
/// to twice as many: those with which the busiest worker has the least to do. Less than a tile if
/// it has two thirds of that at most then: many workers and few panels.
ptrdiff_t even_piece(ptrdiff_t panels, ptrdiff_t wanted, ptrdiff_t row_pieces, ptrdiff_t workers) {
  constexpr ptrdiff_t kTile = 4;
  const auto most_of = [&](ptrdiff_t piece) {  // panels of the busiest worker
    return pieces(row_pieces * pieces(panels, piece), workers) * piece;
  };
  const ptrdiff_t largest = pieces(pieces(panels, wanted), kTile) * kTile;
  ptrdiff_t best = largest, least = PTRDIFF_MAX;
  for (ptrdiff_t piece = largest; piece > 0 && 2 * piece >= largest; piece -= kTile) {
    if (most_of(piece) >= least) continue;
    least = most_of(piece);
    best = piece;
  }
  if (best > smaller(kTile, panels)) return best;
  for (ptrdiff_t piece = kTile / 2; piece > 0; piece /= 2) {
    if (3 * most_of(piece) <= 2 * least) return piece;
  }
  return best;
}

}  // namespace

Gemm Product::item(ptrdiff_t number) const {
  const ptrdiff_t row = number / panel_pieces * row_piece;
  const ptrdiff_t panel = number % panel_pieces * panel_piece;
  Gemm part = gemm;
  part.a += row * gemm.a_row;
  part.first_row += row;
  part.w += panel * gemm.w_panel;
  if (part.bias) part.bias += panel * kPanel;
  part.c += row * gemm.c_row + panel * gemm.c_panel;
  part.rows = smaller(row_piece, gemm.rows - row);
  part.columns = smaller(panel_piece * kPanel, gemm.columns - panel * kPanel);
  return part;
}

double Product::weight_bytes() const {
  return static_cast<double>(gemm.columns) * static_cast<double>(gemm.w_panel / kPanel) * 4;
}

double Product::work(const Pace& pace) const {
  const double elements = static_cast<double>(gemm.columns) * static_cast<double>(gemm.depth);
  return pace.microseconds(elements * static_cast<double>(gemm.rows), weight_bytes());
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

Plan::Plan(const Signature& s, const Kernels& k, const Extents& e, const Tensor* inputs,
           const Outputs& results, size_t threads)
    : signature(s),
      attributes(s.attributes),
      kernels(k),
      extents(e),
      tensors(inputs),
      outputs(results),
      positions(s, inputs, e),
      workers(static_cast<ptrdiff_t>(threads)),
      batch(extent(kBatch)),
      q_seq(extent(kQSeq)),
      kv_heads(extent(kKvNumHeads)),
      group(extent(kNumHeads) / extent(kKvNumHeads)),
      present_seq(static_cast<ptrdiff_t>(e.total_seq())) {
  const ptrdiff_t dim = extent(kHeadDim), value_dim = extent(kVHeadDim);
  query.seq = q_seq;
  key.seq = value.seq = extent(kKvSeq);
  query.heads = extent(kNumHeads);
  key.heads = value.heads = kv_heads;
  query.dim = key.dim = dim;
  value.dim = value_dim;
  plan_lengths();

  if (signature.has(kQkvWeight)) {
    plan_joint();
  } else if (signature.has(kQkv)) {
    plan_packed();
  } else {
    plan_stream(&query, kQuery, kQWeight, kQBias, kHidden, kQColumns);
    plan_stream(&key, kKey, kKWeight, kKBias, signature.key_source(), kKColumns);
    plan_stream(&value, kValue, kVWeight, kVBias, signature.value_source(), kVColumns);
  }

  plan_attention();
  plan_merge();
  count_weights();
  plan_sharing();

  for (int i = 0; i < product_count; ++i) {
    cut(&products[i]);
    plan_packing(&products[i]);
  }
  if (has_merge) {
    cut(&merge);
    plan_packing(&merge);
  }
  const ptrdiff_t weight_columns = outputs.attn_weights ? total_seq : 0;
  const size_t attend = static_cast<size_t>(kernels.attend_scratch(dim, value_dim, weight_columns));
  const size_t staging = static_cast<size_t>(kPanel * round_to_panel(dim));
  local_size = (attend > staging ? attend : staging) / kLine * kLine + kLine;
  at.local = layout.reserve(workers, static_cast<int64_t>(local_size));
  at.counters = layout.reserve(counter_bytes(workers) / static_cast<ptrdiff_t>(sizeof(float)));
}

/// The longest batch, and room for what is joined elsewhere before the latest of it is cached.
void Plan::plan_lengths() {
  if (!signature.has(kSeqlensK)) {
    total_seq = present_seq;
    return;
  }
  bool is_staged = false;
  for (ptrdiff_t i = 0; i < batch; ++i) {
    if (positions.used(i) > total_seq) total_seq = positions.used(i);
    is_staged = is_staged || positions.dropped(i) > 0;
  }
  if (is_staged) {
    const int64_t heads = static_cast<int64_t>(batch) * kv_heads;
    at.staged_keys = layout.reserve(heads, total_seq, key.dim);
    at.staged_values = layout.reserve(heads, total_seq, value.dim);
  }
  if (signature.has(kCosCache)) at.tables = layout.reserve(2 * batch, q_seq, extent(kRotaryDim));
}

/// Whether attention reads K's rows. With a few query rows to a kv head it is not worth writing K's
/// panels and reading them again, where K's rows lie in one piece: joined to a cache, or as given.
bool Plan::is_key_in_rows(bool joined) const {
  const ptrdiff_t few = heads_are_rows() ? 12 : 8;
  const bool as_given = signature.has(kKey) && attributes.k_norm == NormKind::kNone &&
                        !signature.has(kKCos) && !signature.has(kPastKey);
  return q_seq * group <= few && (joined || as_given);
}

/// How K and V come to attention, and in which parts.
void Plan::plan_attention() {
  const ptrdiff_t dim = extent(kHeadDim), value_dim = extent(kVHeadDim);
  const int64_t kv_blocks = static_cast<int64_t>(batch) * kv_heads;
  // Weights that somebody reads aren't rounded.
  narrow = attributes.precision == Precision::kBf16 && kernels.narrow_value &&
           q_seq * group >= kFewestNarrowRows && !outputs.attn_weights;
  reads_key_rows = is_key_in_rows(has_presents());
  if (!reads_key_rows) {
    at.key_panels = layout.reserve(kv_blocks, round_to_panel(total_seq), words_of(dim, narrow));
  }
  plan_parts();
  if (narrow) at.narrow_values = layout.reserve(kv_blocks, panels_of(value_dim), narrow_panel());
  const bool whole_panels = value_dim % kPanel == 0;
  in_place_value = !signature.has(kPastValue) && (value.projected || whole_panels);
  joined_in_present = !in_place_value && has_presents() && whole_panels;
  value_row = round_to_panel(value_dim);
  if (!in_place_value && !joined_in_present) {
    at.values = layout.reserve(kv_blocks, total_seq, value_row);
  }
  if (attributes.q_norm_over_heads) at.query_statistics = layout.reserve(batch, q_seq, 2);
  if (attributes.k_norm_over_heads) at.key_statistics = layout.reserve(batch, key.seq, 2);
}

/// K and V in parts for a few rows behind a longer K. A cache of a window's size is short; and a
/// mask may hide most of K, which is only looked for in all of it. Weights have one maximum.
void Plan::plan_parts() {
  const int64_t kv_blocks = static_cast<int64_t>(batch) * kv_heads;
  const bool few = (q_seq == 1 || reads_key_rows) && total_seq > q_seq;
  const bool masked = signature.has(kAttnMask) && total_seq > kColumnBlock;
  // The more kv heads, the more items there are, and long copies are faster than short ones.
  part_columns = kColumnBlock * (kv_heads > 2 ? kv_heads / 2 : 1);
  const bool whole = attributes.window_cache || masked || outputs.attn_weights;
  parts = few && !whole ? pieces(total_seq, part_columns) : 0;
  if (parts > 1) at.part_results = layout.reserve(kv_blocks, parts, part_size());
  if (parts == 0) at.greatest = layout.reserve(kv_blocks, 2);
}

/// source * weight + bias without a place for the result.
Gemm Plan::product(Operand source, Operand weight, Operand bias, Extent columns) const {
  const Tensor& a = tensors[source];
  Gemm g = {};
  g.a = static_cast<const float*>(a.data);
  g.depth = static_cast<ptrdiff_t>(a.dims[2]);
  g.a_row = g.depth;
  g.rows = static_cast<ptrdiff_t>(a.dims[0] * a.dims[1]);
  g.columns = extent(columns);
  set_weight(&g, weight);
  g.bias = floats(bias);
  g.precision = attributes.precision;
  return g;
}

/// The depth is known.
void Plan::set_weight(Gemm* g, Operand weight) const {
  g->w = floats(weight);
  g->w_is_paired = tensors[weight].type == kBfloat16;
  g->w_row = kPanel;
  g->w_panel = (g->w_is_paired ? g->depth / 2 : g->depth) * kPanel;
}

void Plan::add_product(const Gemm& gemm, size_t scratch) {
  Product& p = products[product_count++];
  p.gemm = gemm;
  p.scratch = scratch;
}

/// How the heads of a projection lie. Where each head begins at a panel, C is kept in panels: V is
/// then read as a weight is, K is transposed from squares that lie in one piece. Otherwise it is
/// kept in rows.
void Plan::place_product(Gemm* g, bool whole_heads) {
  if (whole_heads) {
    g->c_row = kPanel;
    g->c_panel = g->rows * kPanel;
    add_product(*g, layout.reserve(g->rows, g->columns));
  } else {
    g->c_row = round_to_panel(g->columns) + kPanel;  // the last head's last panel is read whole
    g->c_panel = kPanel;
    add_product(*g, layout.reserve(g->rows, g->c_row));
  }
}

/// The heads of `s` in a product's result, from its column `first` on.
void Plan::find_heads(Stream* s, const Product& p, ptrdiff_t first) {
  const bool panels = p.gemm.c_row == kPanel;
  s->projected = true;
  s->row_stride = p.gemm.c_row;
  s->chunk_stride = p.gemm.c_panel;
  s->head_stride = panels ? p.gemm.rows * s->dim : s->dim;
  s->batch_stride = s->seq * s->row_stride;
  s->scratch = p.scratch + static_cast<size_t>(panels ? p.gemm.rows * first : first);
}

void Plan::plan_stream(Stream* s, Operand tensor, Operand weight, Operand bias, Operand source,
                       Extent columns) {
  if (signature.has(tensor)) {
    s->data = floats(tensor);
    s->row_stride = s->dim;
    s->chunk_stride = kPanel;
    s->head_stride = s->seq * s->dim;
    s->batch_stride = s->heads * s->head_stride;
    return;
  }
  Gemm g = product(source, weight, bias, columns);
  place_product(&g, s->dim % kPanel == 0);
  find_heads(s, products[product_count - 1], 0);
}

/// Q, K and V of one weight.
void Plan::plan_joint() {
  Gemm g = product(kHidden, kQkvWeight, kQkvBias, kQkvColumns);
  place_product(&g, query.dim % kPanel == 0 && value.dim % kPanel == 0);
  const ptrdiff_t q_columns = extent(kQColumns), k_columns = extent(kKColumns);
  find_heads(&query, products[0], 0);
  find_heads(&key, products[0], q_columns);
  find_heads(&value, products[0], q_columns + k_columns);
}

/// Q, K and V side by side in one tensor.
void Plan::plan_packed() {
  const float* first = floats(kQkv);
  Stream* const streams[] = {&query, &key, &value};
  for (Stream* s : streams) {
    s->data = first;
    s->row_stride = extent(kQkvColumns);
    s->chunk_stride = kPanel;
    s->head_stride = s->dim;
    s->batch_stride = s->seq * s->row_stride;
    first += s->heads * s->dim;
  }
}

void Plan::plan_merge() {
  const ptrdiff_t width = extent(kNumHeads) * extent(kVHeadDim);
  has_merge = signature.has(kOutWeight);
  // An odd number of cache lines spreads the rows over the sets of L1.
  context_stride = has_merge ? ((panels_of(width) + 1) | 1) * kPanel : width;
  if (!has_merge) return;
  at.context = layout.reserve(batch, q_seq, context_stride);
  Gemm& g = merge.gemm;
  g.a_row = context_stride;
  g.rows = batch * q_seq;
  g.depth = width;
  g.columns = extent(kOutSize);
  set_weight(&g, kOutWeight);
  g.bias = floats(kOutBias);
  g.precision = attributes.precision;
  g.c_row = g.columns;
  g.c_panel = kPanel;
}

void Plan::count_weights() {
  double bytes = has_merge ? merge.weight_bytes() : 0;
  for (int i = 0; i < product_count; ++i) bytes += products[i].weight_bytes();
  merge.gemm.block_weights = bytes;
  for (int i = 0; i < product_count; ++i) products[i].gemm.block_weights = bytes;
}

/// Work that isn't worth a hand-over is one worker's.
void Plan::plan_sharing() {
  const bool is_narrow = attributes.precision == Precision::kBf16 && kernels.narrow_value;
  const bool is_far = merge.gemm.block_weights > kFarWeights;
  pace = {is_narrow ? 100e3 : 50e3, is_far ? 25e3 : 50e3};
  double work = attend_work() + (has_merge ? merge.work(pace) : 0);
  for (int i = 0; i < product_count; ++i) work += products[i].work(pace);
  is_worth_sharing = work >= kWorthSharing;
  if (!is_worth_sharing) workers = 1;
}

void Plan::plan_packing(Product* p) {
  p->gemm.packed_rows = p->gemm.rows;
  const size_t floats = kernels.packed_floats(p->gemm);
  p->is_packed = floats > 0;
  p->packed_scratch = layout.reserve(static_cast<int64_t>(floats));
}

/// Pieces for several turns of each worker, so that a late one costs little; whole when serial.
/// Pieces of rows that end unevenly want more turns.
void Plan::cut(Product* p) const {
  const Gemm& g = p->gemm;
  const ptrdiff_t panels = panels_of(g.columns);
  const bool alone = workers == 1 || p->work(pace) < kWorthMeeting;
  p->row_pieces = alone || g.rows <= kRowPiece ? 1 : pieces(g.rows, kRowPiece);
  p->row_piece = pieces(pieces(g.rows, p->row_pieces), kPackRows) * kPackRows;
  const ptrdiff_t wanted = alone ? 1 : pieces((p->row_pieces > 1 ? 8 : 4) * workers, p->row_pieces);
  p->panel_piece = alone ? panels : even_piece(panels, wanted, p->row_pieces, workers);
  p->panel_pieces = p->panel_piece > 0 ? pieces(panels, p->panel_piece) : 0;
}

bool Plan::heads_are_rows() const {
  const bool sees_all = !attributes.is_causal || key.seq <= 1;
  return q_seq == 1 && group > 1 && sees_all && !attributes.q_norm_over_heads;
}

bool Plan::hides() const {
  return attributes.is_causal && (key.seq > 1 || attributes.window_size > 0);
}

bool Plan::is_masked() const {
  return total_seq > kColumnBlock && (signature.has(kAttnBias) || signature.has(kAttnMask));
}

double Plan::attend_work() const {
  const double rows = static_cast<double>(batch * query.heads * q_seq);
  const double total = static_cast<double>(total_seq);
  const double dims = static_cast<double>(query.dim + value.dim);
  const double read = static_cast<double>(batch * kv_heads) * total * dims * sizeof(float);
  return pace.microseconds(rows * total * dims, read);
}

bool Plan::is_even(ptrdiff_t items) const {
  const ptrdiff_t turns = pieces(items, workers);
  return static_cast<double>(items) >= 0.85 * static_cast<double>(turns * workers);
}

bool Plan::scratch_bytes(size_t* bytes) const {
  *bytes = layout.used * sizeof(float);
  return !layout.overflow;
}

}  // namespace onnx_fuse
