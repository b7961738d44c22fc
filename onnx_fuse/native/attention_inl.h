// Attention of one head, for whichever vector type was included before.
//
// Query rows are taken in tiles of kRows, K and V in blocks of kBlock positions. The scores of a
// tile and a block (12 * 256 * 4 B = 12 KiB) stay in L1 together with the tile's running results:
// the softmax's maximum and sum, and the unnormalised output, which are scaled when the maximum
// grows.
//
// `Products` says in which form the factors of both products lie, and multiplies them: a row of n
// numbers is words_of(n, kNarrow) floats wide, which are numbers or pairs of them.
#pragma once

#include <math.h>
#include <string.h>

#include "gemm_inl.h"
#include "math_inl.h"
#include "sight_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kBlock = kColumnBlock;

/// Products of float32.
struct FloatProducts {
  static constexpr bool kNarrow = false;
  static constexpr int kRows = kMaxRows;
  static void narrow(float*, ptrdiff_t) {}
  static void store_powers(float* row, ptrdiff_t i, Vec powers) { store(row + i, powers); }
  static float greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t words);
  static void multiply(const Gemm& g) { gemm(g); }
};

/// 16 rows as columns of a panel: panel[d * 16 + column] = rows of `column`, element d.
inline void store_panel(const HeadRows& rows, ptrdiff_t dim, float* panel) {
  ptrdiff_t d = 0;
  const float* from = rows.data;
  for (; d + kPanel <= dim; d += kPanel, from += rows.chunk_stride) {
    transpose(from, rows.row_stride, panel + d * kPanel);
  }
  for (ptrdiff_t i = 0; d + i < dim; ++i) {
    for (ptrdiff_t c = 0; c < kPanel; ++c)
      panel[(d + i) * kPanel + c] = from[c * rows.row_stride + i];
  }
}

/// Rows first .. first + 16 of past and new keys, ready and contiguous; zeros after the last.
template <class Products>
inline HeadRows gather_keys(const KeyTask& t, ptrdiff_t first) {
  const ptrdiff_t stride = round_to_panel(t.dim);
  const size_t bytes = static_cast<size_t>(t.dim) * sizeof(float);
  for (ptrdiff_t c = 0; c < kPanel; ++c) {
    const ptrdiff_t at = first + c;
    float* row = t.staging + c * stride;
    if (at < t.past_seq) {
      memcpy(row, t.past + at * t.dim, bytes);
    } else if (at < t.past_seq + t.seq) {
      prepare_row(t.source, t.norm, t.rope, at - t.past_seq, t.dim, row);
    } else {
      memset(row, 0, static_cast<size_t>(stride) * sizeof(float));
      continue;
    }
    if (t.present) memcpy(t.present + at * t.dim, row, bytes);
    Products::narrow(row, t.dim);
  }
  return {t.staging, stride, kPanel};
}

/// Past and new rows to `present` only.
void join_keys(const KeyTask& t) {
  const ptrdiff_t old_end = t.end < t.past_seq ? t.end : t.past_seq;
  const size_t row_bytes = static_cast<size_t>(t.dim) * sizeof(float);
  if (t.begin < old_end && t.present != t.past) {
    memcpy(t.present + t.begin * t.dim, t.past + t.begin * t.dim,
           static_cast<size_t>(old_end - t.begin) * row_bytes);
  }
  for (ptrdiff_t at = t.begin > old_end ? t.begin : old_end; at < t.end; ++at) {
    // By way of the staging: whole panels may be written.
    prepare_row(t.source, t.norm, t.rope, at - t.past_seq, t.dim, t.staging);
    memcpy(t.present + at * t.dim, t.staging, row_bytes);
  }
}

template <class Products>
void prepare_key_for(const KeyTask& t) {
  if (!t.panels) return join_keys(t);
  const ptrdiff_t total = t.past_seq + t.seq, words = words_of(t.dim, Products::kNarrow);
  const bool as_they_are =
      !Products::kNarrow && t.norm.kind == NormKind::kNone && t.rope.dims == 0 && !t.present;
  for (ptrdiff_t first = t.begin; first < t.end; first += kPanel) {
    float* panel = t.panels + first * words;
    if (as_they_are && first >= t.past_seq && first + kPanel <= total) {
      const float* from = t.source.data + (first - t.past_seq) * t.source.row_stride;
      store_panel({from, t.source.row_stride, t.source.chunk_stride}, words, panel);
    } else {
      store_panel(gather_keys<Products>(t, first), words, panel);
    }
  }
  if (t.greatest) {
    const HeadRows panels = {t.panels + t.begin * words, kPanel, kPanel};
    *t.greatest = Products::greatest(panels, panels_of(t.end - t.begin) * words, kPanel);
  }
}

void prepare_value(const ValueTask& t) {
  const size_t padding = static_cast<size_t>(t.out_row - t.dim) * sizeof(float);
  // A cache in a buffer of its own is written in place.
  const ptrdiff_t first = t.out == t.past && t.begin < t.past_seq ? t.past_seq : t.begin;
  for (ptrdiff_t at = first; at < t.end; ++at) {
    float* out = t.out + at * t.out_row;
    if (at < t.past_seq) {
      memcpy(out, t.past + at * t.dim, static_cast<size_t>(t.dim) * sizeof(float));
    } else {
      copy_row(t.source, at - t.past_seq, t.dim, out);
    }
    memset(out + t.dim, 0, padding);
  }
}

float greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t dim) {
  Vec bad = zero(), most = zero();  // x - x is NaN for inf and NaN, and a NaN stays
  for (ptrdiff_t row = 0; row < count; ++row) {
    const float* x = rows.data + row * rows.row_stride;
    for (ptrdiff_t d = 0; d < dim; d += kPanel, x += rows.chunk_stride) {
      const ptrdiff_t n = dim - d < kPanel ? dim - d : kPanel;
      for (ptrdiff_t i = 0; i < n; i += kLanes) {
        const Vec v = i + kLanes <= n ? load(x + i) : load_some(x + i, n - i, 0);
        bad = add(bad, sub(v, v));
        most = max(most, abs(v));
      }
    }
  }
  return sum(bad) == 0.0f ? max_of(most) : NAN;
}

inline float FloatProducts::greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t words) {
  return onnx_fuse::greatest(rows, count, words);
}

template <class Products>
ptrdiff_t attend_scratch_for(ptrdiff_t dim, ptrdiff_t value_dim) {
  return Products::kRows * (round_to_panel(dim) + kBlock + round_to_panel(value_dim)) +
         2 * kPanel * round_to_panel(dim);
}

/// One past the last column that causality lets a row see.
inline ptrdiff_t visible_end_of(const AttendTask& t, ptrdiff_t row) {
  return row * t.row_step + t.past + 1;
}

/// The first column of a row's window; negative where the window begins before the columns.
inline ptrdiff_t window_begin_of(const AttendTask& t, ptrdiff_t row) {
  const ptrdiff_t end = visible_end_of(t, row);
  return (t.window_ends_inside && end > t.total ? t.total : end) - t.window;
}

/// Scores of one row, columns [first, first + n) of `total`, from products to logits in place, and
/// then to powers in the form of a factor.
template <class Products>
struct ScoreRow {
  const AttendTask& t;
  ptrdiff_t row;
  ptrdiff_t first, n;
  float* s;  // kBlock elements

  const float* floats(const ScoreTerm& term) const {
    return static_cast<const float*>(term.data) + row * term.row_stride +
           first * term.column_stride;
  }
  const uint8_t* bytes(const ScoreTerm& term) const {
    return static_cast<const uint8_t*>(term.data) + row * term.row_stride +
           first * term.column_stride;
  }
  /// The term's values for columns i .. i + kLanes, broadcast where it is.
  Vec value(const ScoreTerm& term, ptrdiff_t i) const {
    const float* p = floats(term);
    if (term.column_stride == 0) return broadcast(*p);
    return i + kLanes <= n ? load(p + i) : load_some(p + i, n - i, 0);
  }
  /// Logits of columns i .. i + kLanes from their products.
  Vec logits(ptrdiff_t i) const {
    Vec x = mul(load(s + i), broadcast(t.scale));
    if (t.softcap > 0) x = mul(broadcast(t.softcap), tanh(div(x, broadcast(t.softcap))));
    if (t.bias.data) x = add(x, value(t.bias, i));
    if (t.mask.data) x = select(x, i);
    return x;
  }
  Vec select(Vec x, ptrdiff_t i) const {
    const uint8_t* keep = bytes(t.mask);
    if (t.mask.column_stride == 0) return *keep ? x : value(t.fill, i);
    uint8_t last[kLanes] = {};
    const bool whole = i + kLanes <= n;
    if (!whole) memcpy(last, keep + i, static_cast<size_t>(n - i));
    return select_byte(whole ? keep + i : last, x, value(t.fill, i));
  }
  /// Columns that the product with V reads: those beyond n are zeros.
  ptrdiff_t padded() const { return Products::kNarrow ? 2 * words_of(n, true) : round_to_panel(n); }
  /// How many of the n columns causality lets the row see.
  ptrdiff_t visible() const { return within(t.causal ? visible_end_of(t, row) - first : n); }
  /// How many of them are before the row's window.
  ptrdiff_t hidden() const { return t.window > 0 ? within(window_begin_of(t, row) - first) : 0; }
  ptrdiff_t within(ptrdiff_t columns) const { return columns < 0 ? 0 : columns < n ? columns : n; }
  /// Nothing but a scale makes logits of the products: they are then scaled on their way to the
  /// powers, as a greatest product has the greatest logit.
  bool is_only_scaled() const {
    return t.scale > 0 && t.softcap == 0 && !t.bias.data && !t.mask.data;
  }
  /// s = logits (products if is_only_scaled), -inf where hidden and in the padding; returns the
  /// greatest logit.
  float make_logits() const {
    const bool raw = is_only_scaled();
    const ptrdiff_t end = visible(), begin = hidden() < end ? hidden() : end;
    // Registers that are seen as a whole, between what may be one before and one behind them.
    const ptrdiff_t first_whole = (begin + kLanes - 1) / kLanes * kLanes;
    const ptrdiff_t whole = end / kLanes * kLanes, before = first_whole - kLanes;
    const bool has_before = begin % kLanes != 0, has_behind = whole < end && before != whole;
    Vec m = broadcast(-INFINITY);
    if (raw) {
      for (ptrdiff_t i = first_whole; i < whole; i += kLanes) m = max(m, load(s + i));
    } else {
      for (ptrdiff_t i = first_whole; i < whole; i += kLanes) {
        const Vec x = logits(i);
        store(s + i, x);
        m = max(m, x);
      }
      if (has_before) store(s + before, logits(before));
      if (has_behind) store(s + whole, logits(whole));
    }
    for (ptrdiff_t i = 0; i < begin; ++i) s[i] = -INFINITY;
    for (ptrdiff_t i = end; i < padded(); ++i) s[i] = -INFINITY;
    if (has_before) m = max(m, load(s + before));
    if (has_behind) m = max(m, load(s + whole));
    return raw ? max_of(m) * t.scale : max_of(m);
  }
  /// s = e^(logit - shift); returns the sum.
  float exponentiate(float shift) const {
    Vec total = zero();
    const Vec minus = broadcast(-shift), scale = broadcast(is_only_scaled() ? t.scale : 1.0f);
    for (ptrdiff_t i = 0; i < padded(); i += kLanes) {
      const Vec e = exp(fma(load(s + i), scale, minus));
      Products::store_powers(s, i, e);
      total = add(total, e);
    }
    return sum(total);
  }
};

inline void multiply_row(float* x, ptrdiff_t n, float factor) {
  const Vec f = broadcast(factor);
  ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, mul(load(x + i), f));
  for (; i < n; ++i) x[i] *= factor;
}

/// A row without a maximum, or whose sum shows a NaN.
inline bool is_nan(float maximum, float total) { return maximum == -INFINITY || total != total; }

/// Such a row's weights are zero, and not NaN.
inline bool is_zero(const AttendTask& t, float maximum, float total) {
  return is_nan(maximum, total) && (t.zero_nan || (t.zero_empty && total == 0));
}

/// A row whose weights are all zero: 0 * v, which is NaN for a v that is not finite.
inline void clear_row(const AttendTask& t, float* to) {
  for (ptrdiff_t d = 0; d < t.value_dim; ++d) {
    const float* v = t.value + d / kPanel * t.value_panel + d % kPanel;
    float all = 0;
    for (ptrdiff_t i = 0; i < t.total; ++i) all += 0.0f * v[i * t.value_row];
    to[d] = all;
  }
}

/// The output of a row from the sums of its powers times V.
inline void finish_row(const AttendTask& t, const float* sums, float maximum, float total,
                       float* to) {
  if (is_zero(t, maximum, total)) return clear_row(t, to);
  const float factor = is_nan(maximum, total) ? NAN : 1.0f / total;
  for (ptrdiff_t d = 0; d < t.value_dim; ++d) to[d] = sums[d] * factor;
}

/// Up to kRows query rows with their running softmax.
template <class Products>
struct QueryTile {
  using Row = ScoreRow<Products>;
  static constexpr int kRows = Products::kRows;

  const AttendTask& t;
  ptrdiff_t row;  // first, among all rows of the head
  int count;
  float* query;      // (count, query_stride), words of them
  float* scores;     // (count, kBlock)
  float* out;        // (count, out_stride), not yet divided by the sum
  float* key_panel;  // two panels, for K's rows if they come as such
  ptrdiff_t query_stride, out_stride, words;
  float maximum[kRows], total[kRows];

  QueryTile(const AttendTask& task, ptrdiff_t first, int rows)
      : t(task),
        row(first),
        count(rows),
        query(task.scratch),
        scores(query + kRows * round_to_panel(task.dim)),
        out(scores + kRows * kBlock),
        query_stride(round_to_panel(task.dim)),
        out_stride(round_to_panel(task.value_dim)),
        words(words_of(task.dim, Products::kNarrow)) {
    key_panel = out + kRows * out_stride;
    for (int r = 0; r < count; ++r) {
      prepare_row(t.query, t.norm, t.rope, row + r, t.dim, query + r * query_stride);
      Products::narrow(query + r * query_stride, t.dim);
    }
    start();
  }

  /// No column has been taken in yet.
  void start() {
    for (int r = 0; r < count; ++r) {
      maximum[r] = -INFINITY;
      total[r] = 0;
      const float sink = t.sink ? t.sink[(row + r) * t.sink_row] : -INFINITY;
      if (sink != -INFINITY) {
        maximum[r] = sink;
        total[r] = sink - sink == 0 ? 1.0f : NAN;  // e^(sink - sink)
      }
    }
  }

  /// One past the last column that causality lets a row of the tile see, if hidden ones may be
  /// skipped.
  ptrdiff_t visible_end() const {
    if (!t.causal || !t.skip_masked) return t.total;
    const ptrdiff_t end = visible_end_of(t, row + count - 1);
    return end < t.total ? end : t.total;
  }
  /// The first column that a window lets a row of the tile see, or one before it at which a tile of
  /// columns begins; as late as the end where there is none.
  ptrdiff_t visible_begin() const {
    if (t.window == 0 || !t.skip_masked) return 0;
    const ptrdiff_t begin = window_begin_of(t, row), end = visible_end();
    return begin < 0 ? 0 : (begin < end ? begin : end) / kTileDepth * kTileDepth;
  }
  /// All that any tile sees is one block: whether it is does not depend on where tiles begin.
  bool is_one_block() const {
    const bool fits = t.window > 0 && t.window + kRows + kTileDepth <= kBlock;
    return t.total <= kBlock || (fits && t.skip_masked);
  }

  void multiply_scores(ptrdiff_t first, ptrdiff_t n) {
    if (t.key_panels) return multiply_panels(t.key_panels + first * words, scores, n);
    for (ptrdiff_t i = 0; i < n; i += kPanel) {
      transpose_keys(first + i, n - i < kPanel ? n - i : kPanel);
      multiply_panels(key_panel, scores + i, kPanel);
    }
  }
  void multiply_panels(const float* panels, float* to, ptrdiff_t n) {
    Products::multiply({query, query_stride, panels, kPanel, kPanel * words, false, nullptr, to,
                        kBlock, kPanel, count, round_to_panel(n), words, false});
  }
  /// The last rows are copied first: beyond them there may be no memory.
  void transpose_keys(ptrdiff_t first, ptrdiff_t rows) {
    const float* from = t.key.data + first * t.key.row_stride;
    if (rows == kPanel) {
      return store_panel({from, t.key.row_stride, t.key.chunk_stride}, t.dim, key_panel);
    }
    float* copy = key_panel + kPanel * query_stride;
    memset(copy, 0, static_cast<size_t>(kPanel * query_stride) * sizeof(float));
    for (ptrdiff_t r = 0; r < rows; ++r) copy_row(t.key, first + r, t.dim, copy + r * query_stride);
    store_panel({copy, query_stride, kPanel}, t.dim, key_panel);
  }

  /// Scores of columns [first, first + n) to powers; what came before is brought to the new maximum
  /// of row r by shrink[r]. First the maxima of all rows, then the powers of all: a row's own wait
  /// for its maximum.
  void soften(ptrdiff_t first, ptrdiff_t n, float* shrink) {
    const auto scores_of = [&](int r) { return Row{t, row + r, first, n, scores + r * kBlock}; };
    float now[kRows];
    for (int r = 0; r < count; ++r) {
      const float here = scores_of(r).make_logits();
      now[r] = maximum[r] > here ? maximum[r] : here;  // a NaN of either shows in the sum
    }
    for (int r = 0; r < count; ++r) {
      const float before = maximum[r];
      // As long as everything was -inf nothing may be subtracted: -inf - -inf is no 0.
      const float shift = now[r] == -INFINITY ? 0.0f : now[r];
      shrink[r] = before == now[r] ? 1.0f : before == -INFINITY ? 0.0f : expf(before - shift);
      total[r] = total[r] * shrink[r] + scores_of(r).exponentiate(shift);
      maximum[r] = now[r];
    }
  }

  void multiply_values(ptrdiff_t first, ptrdiff_t n, float* to, ptrdiff_t to_row, ptrdiff_t columns,
                       bool accumulate) {
    Gemm g = {scores,
              kBlock,
              t.value + first * t.value_row,
              t.value_row,
              t.value_panel,
              false,
              nullptr,
              to,
              to_row,
              kPanel,
              count,
              columns,
              n,
              accumulate};
    if (Products::kNarrow) {
      g.w = t.narrow_value + words_of(first, true) * kPanel;
      g.w_row = kPanel;
      g.w_panel = t.narrow_panel;
      g.depth = words_of(n, true);
    }
    Products::multiply(g);
  }

  /// All of K and V in one block: nothing has to be brought to another maximum.
  void run_once() {
    const ptrdiff_t first = visible_begin(), n = visible_end() - first;
    float* to = result(0);
    float shrink[kRows], factor[kRows];
    multiply_scores(first, n);
    soften(first, n, shrink);
    for (int r = 0; r < count; ++r) {
      factor[r] = is_nan(maximum[r], total[r]) ? NAN : 1.0f / total[r];
      if (is_zero(t, maximum[r], total[r])) {
        memset(scores + r * kBlock, 0, static_cast<size_t>(n) * sizeof(float));
        factor[r] = 1.0f;
      }
    }
    multiply_values(first, n, to, t.out_row, t.value_dim, false);
    for (int r = 0; r < count; ++r) multiply_row(to + r * t.out_row, t.value_dim, factor[r]);
  }

  float* result(int r) const { return t.out + (row - t.first_row + r) * t.out_row; }

  void finish() {
    for (int r = 0; r < count; ++r) {
      finish_row(t, out + r * out_stride, maximum[r], total[r], result(r));
    }
  }

  /// Takes the columns into the running softmax.
  void run_columns(ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t first = begin; first < end; first += kBlock) {
      const ptrdiff_t n = end - first < kBlock ? end - first : kBlock;
      float shrink[kRows];
      multiply_scores(first, n);
      soften(first, n, shrink);
      for (int r = 0; r < count; ++r) {
        if (first == begin || shrink[r] == 1.0f) continue;
        multiply_row(out + r * out_stride, out_stride, shrink[r]);
      }
      multiply_values(first, n, out, out_stride, out_stride, first > begin);
    }
  }

  /// Blocks in which no row sees anything are left out: they would add zeros. If a row turns out to
  /// see something there after all, everything is taken in.
  void run_blocks() {
    const ptrdiff_t begin = visible_begin(), end = visible_end();
    Sight sight{t, row, count, score_bound(), begin, end};
    sight.narrow();
    run_columns(sight.begin / kBlock * kBlock, sight.end);
    float least = INFINITY;
    for (int r = 0; r < count; ++r) least = maximum[r] < least ? maximum[r] : least;
    const bool is_whole = sight.begin == begin && sight.end == end;
    if (!is_whole && (sight.begin == sight.end || !sight.is_nothing_below(least))) {
      start();
      run_columns(begin / kBlock * kBlock, end);
    }
    finish();
  }

  /// No score of the tile is greater; NaN: not known.
  float score_bound() const {
    if (!(t.key_bound < INFINITY)) return NAN;
    const HeadRows rows = {query, query_stride, kPanel};
    const float most = Products::greatest(rows, count, words);
    const float product = most * t.key_bound * static_cast<float>(t.dim);
    return 1.001f * fabsf(t.scale) * product;  // sums of rounded products
  }

  void run() {
    if (visible_begin() == visible_end()) {  // an empty sum, not a row of masked scores
      for (int r = 0; r < count; ++r) {
        memset(result(r), 0, static_cast<size_t>(t.value_dim) * sizeof(float));
      }
    } else if (is_one_block()) {
      run_once();
    } else {
      run_blocks();
    }
  }

  /// The part's columns alone.
  void run_part() {
    const ptrdiff_t first = visible_begin(), last = visible_end();
    const ptrdiff_t begin = first > t.part.begin ? first : t.part.begin;
    const ptrdiff_t end = last < t.part.end ? last : t.part.end;
    if (begin < end) {
      run_columns(begin, end);
    } else {
      memset(out, 0, static_cast<size_t>(count * out_stride) * sizeof(float));
    }
    for (int r = 0; r < count; ++r) {
      float* to = t.part.results + (row - t.first_row + r) * part_row(t.value_dim);
      memcpy(to, out + r * out_stride, static_cast<size_t>(out_stride) * sizeof(float));
      to[out_stride] = maximum[r];
      to[out_stride + 1] = total[r];
    }
  }
};

template <class Products>
void attend_by(const AttendTask& t) {
  for_row_tiles<Products::kRows>(t.rows, [&](ptrdiff_t first, int count) {
    QueryTile<Products> tile(t, t.first_row + first, count);
    t.part.results ? tile.run_part() : tile.run();
  });
}

void combine(const AttendTask& t, ptrdiff_t parts, ptrdiff_t stride) {
  const ptrdiff_t columns = round_to_panel(t.value_dim);
  float* sums = t.scratch;
  for (ptrdiff_t row = 0; row < t.rows; ++row) {
    const float* first = t.part.results + row * part_row(t.value_dim);
    float maximum = -INFINITY, total = 0;
    for (ptrdiff_t i = 0; i < parts; ++i) {
      const float here = first[i * stride + columns];
      maximum = here > maximum ? here : maximum;
    }
    memset(sums, 0, static_cast<size_t>(columns) * sizeof(float));
    for (ptrdiff_t i = 0; i < parts; ++i) {
      const float* part = first + i * stride;
      const float factor = part[columns] == -INFINITY ? 0.0f : expf(part[columns] - maximum);
      total += factor * part[columns + 1];
      for (ptrdiff_t d = 0; d < columns; ++d) sums[d] += factor * part[d];
    }
    finish_row(t, sums, maximum, total, t.out + row * t.out_row);
  }
}

}  // namespace
}  // namespace onnx_fuse
