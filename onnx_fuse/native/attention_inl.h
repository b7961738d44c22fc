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
#include "joining_inl.h"
#include "math_inl.h"
#include "scores_inl.h"
#include "sight_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kBlock = kColumnBlock;
constexpr ptrdiff_t blocks_of(ptrdiff_t columns) { return pieces(columns, kBlock); }

/// Products of float32.
struct FloatProducts {
  static constexpr bool kNarrow = false;
  static constexpr int kRows = kMaxRows;
  static void narrow(float*, ptrdiff_t) {}
  static Vec power_of_2(Vec x) { return exp2(x); }
  static void store_powers(float* row, ptrdiff_t i, Vec powers) { store(row + i, powers); }
  static float greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t words) {
    return onnx_fuse::greatest(rows, count, words);
  }
  static void multiply(const Gemm& g) { gemm(g); }
};

template <class Products>
ptrdiff_t attend_scratch_for(ptrdiff_t dim, ptrdiff_t value_dim, ptrdiff_t weight_columns) {
  return Products::kRows * (round_to_panel(dim) + kBlock + round_to_panel(value_dim)) +
         2 * kPanel * round_to_panel(dim) + Products::kRows * blocks_of(weight_columns);
}

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
  static constexpr int kWholeVecs = (kRows + kLanes - 1) / kLanes * kLanes;

  const AttendTask& t;
  ptrdiff_t row;  // first, among all rows of the head
  int count;
  float* query;      // (count, query_stride), words of them
  float* scores;     // (count, kBlock)
  float* out;        // (count, out_stride), not yet divided by the sum
  float* key_panel;  // two panels, for K's rows if they come as such
  float* maxima;     // (blocks, kRows), with t.weights: those with which powers were taken
  ptrdiff_t query_stride, out_stride, words;
  float maximum[kRows], total[kRows];  // of the scores, and of their powers

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
    maxima = key_panel + 2 * kPanel * query_stride;
    for (int r = 0; r < count; ++r) {
      prepare_row(t.query, t.norm, t.rope, row + r, t.dim, query + r * query_stride);
      Products::narrow(query + r * query_stride, t.dim);
    }
    start();
  }

  /// No column has been taken in yet. A sink stands before all of them, in the first part.
  void start() {
    for (int r = 0; r < count; ++r) {
      maximum[r] = -INFINITY;
      total[r] = 0;
      const bool has_sink = t.sink && t.part.begin == 0;
      const float sink = has_sink ? t.sink[(row + r) * t.sink_row] : -INFINITY;
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
    return smaller(end, t.total);
  }
  /// The first column that a window lets a row of the tile see, or one before it at which a tile of
  /// columns begins; as late as the end where there is none.
  ptrdiff_t visible_begin() const {
    if (t.window == 0 || !t.skip_masked) return 0;
    const ptrdiff_t begin = window_begin_of(t, row), end = visible_end();
    return begin < 0 ? 0 : smaller(begin, end) / kTileDepth * kTileDepth;
  }
  /// Whether neither causality nor a window hides a column of [first, first + n) from a row.
  bool sees_all(ptrdiff_t first, ptrdiff_t n) const {
    if (t.causal && visible_end_of(t, row) < first + n) return false;
    return t.window == 0 || window_begin_of(t, row + count - 1) <= first;
  }
  /// All that any tile sees is one block: whether it is does not depend on where tiles begin.
  bool is_one_block() const {
    const bool fits = t.window > 0 && t.window + kRows + kTileDepth <= kBlock;
    return t.total <= kBlock || (fits && t.skip_masked);
  }

  void multiply_scores(ptrdiff_t first, ptrdiff_t n) {
    if (t.key_panels) return multiply_panels(t.key_panels + first * words, scores, n);
    for (ptrdiff_t i = 0; i < n; i += kPanel) {
      transpose_keys(first + i, smaller(n - i, kPanel));
      multiply_panels(key_panel, scores + i, kPanel);
    }
  }
  void multiply_panels(const float* panels, float* to, ptrdiff_t n) {
    Gemm g = {};
    g.a = query;
    g.a_row = query_stride;
    g.w = panels;
    g.w_row = kPanel;
    g.w_panel = kPanel * words;
    g.c = to;
    g.c_row = kBlock;
    g.c_panel = kPanel;
    g.rows = count;
    g.columns = round_to_panel(n);
    g.depth = words;
    Products::multiply(g);
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
  /// of row r by shrink[r], of kWholeVecs. First the maxima of all rows, then the powers of all: a
  /// row's own wait for its maximum.
  void update_softmax(ptrdiff_t first, ptrdiff_t n, float* shrink) {
    const auto scores_of = [&](int r) { return Row{t, row + r, first, n, scores + r * kBlock}; };
    const float unit = unit_of(t);
    const bool ready = is_only_scaled(t) && scores_of(0).padded() == n && sees_all(first, n);
    float now[kRows], shift[kRows];
    for (int r = 0; r < count; ++r) {
      const float here = ready ? scores_of(r).greatest() : scores_of(r).make_scores();
      now[r] = maximum[r] > here ? maximum[r] : here;  // a NaN of either shows in the sum
      // As long as everything was -inf nothing may be subtracted: -inf - -inf is no 0.
      shift[r] = now[r] == -INFINITY ? 0.0f : now[r];
      shrink[r] = (maximum[r] - shift[r]) * unit;
    }
    for (int r = 0; r < count; r += kLanes) store(shrink + r, exp2(load(shrink + r)));
    for (int r = 0; r < count; ++r) {
      total[r] = total[r] * shrink[r] + scores_of(r).exponentiate(shift[r]);
      maximum[r] = now[r];
    }
  }

  void multiply_values(ptrdiff_t first, ptrdiff_t n, float* to, ptrdiff_t to_row, ptrdiff_t columns,
                       bool accumulate) {
    Gemm g = {};
    g.a = scores;
    g.a_row = kBlock;
    g.w = t.value + first * t.value_row;
    g.w_row = t.value_row;
    g.w_panel = t.value_panel;
    g.c = to;
    g.c_row = to_row;
    g.c_panel = kPanel;
    g.rows = count;
    g.columns = columns;
    g.depth = n;
    g.accumulate = accumulate;
    if (Products::kNarrow) {
      g.w = t.narrow_value + words_of(first, true) * kPanel;
      g.w_row = kPanel;
      g.w_panel = t.narrow_panel;
      g.depth = words_of(n, true);
    }
    Products::multiply(g);
  }

  float* weights(int r) const { return t.weights + (row - t.first_row + r) * t.total; }

  /// What makes weights of row r's powers; those of a row without weights are cleared.
  float weight_factor(int r) const {
    if (is_zero(t, maximum[r], total[r])) return 1.0f;
    return is_nan(maximum[r], total[r]) ? NAN : 1.0f / total[r];
  }
  /// The weights of columns [first, first + n) from their powers.
  void write_weights(ptrdiff_t first, ptrdiff_t n, const float* factor) {
    for (int r = 0; r < count; ++r) {
      const float* powers = scores + r * kBlock;
      for (ptrdiff_t i = 0; i < n; ++i) weights(r)[first + i] = powers[i] * factor[r];
    }
  }
  /// Where nothing is seen: zeros, but in a row that is NaN.
  void write_no_weights(int r, ptrdiff_t begin, ptrdiff_t end, float factor) {
    for (ptrdiff_t i = begin; i < end; ++i) weights(r)[i] = 0.0f * factor;
  }
  /// The powers of a block, and the maxima that they were taken with.
  void keep_powers(ptrdiff_t first, ptrdiff_t n) {
    float* kept = maxima + first / kBlock * kRows;
    for (int r = 0; r < count; ++r) {
      memcpy(weights(r) + first, scores + r * kBlock, static_cast<size_t>(n) * sizeof(float));
      kept[r] = maximum[r];
    }
  }
  /// The weights of columns [begin, end) from the powers that were kept.
  void finish_weights(ptrdiff_t begin, ptrdiff_t end) {
    const float unit = unit_of(t);
    float factor[kRows];
    for (int r = 0; r < count; ++r) factor[r] = weight_factor(r);
    for (ptrdiff_t first = begin; first < end; first += kBlock) {
      const ptrdiff_t n = smaller(end - first, kBlock);
      const float* kept = maxima + first / kBlock * kRows;
      for (int r = 0; r < count; ++r) {
        if (is_nan(maximum[r], total[r]) || kept[r] == -INFINITY) {
          write_no_weights(r, first, first + n, factor[r]);
        } else {
          multiply_row(weights(r) + first, n, factor[r] * exp2f((kept[r] - maximum[r]) * unit));
        }
      }
    }
    write_no_weights_around(begin, end, factor);
  }
  void write_no_weights_around(ptrdiff_t begin, ptrdiff_t end, const float* factor) {
    for (int r = 0; r < count; ++r) {
      write_no_weights(r, 0, begin, factor[r]);
      write_no_weights(r, end, t.total, factor[r]);
    }
  }

  /// All of K and V in one block: nothing has to be brought to another maximum.
  void run_once() {
    const ptrdiff_t first = visible_begin(), n = visible_end() - first;
    float* to = result(0);
    float shrink[kWholeVecs] = {}, factor[kRows];
    multiply_scores(first, n);
    update_softmax(first, n, shrink);
    for (int r = 0; r < count; ++r) {
      factor[r] = weight_factor(r);
      if (is_zero(t, maximum[r], total[r])) {
        memset(scores + r * kBlock, 0, static_cast<size_t>(n) * sizeof(float));
      }
    }
    if (t.weights) {
      write_weights(first, n, factor);
      write_no_weights_around(first, first + n, factor);
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
      const ptrdiff_t n = smaller(end - first, kBlock);
      float shrink[kWholeVecs] = {};
      multiply_scores(first, n);
      update_softmax(first, n, shrink);
      if (t.weights) keep_powers(first, n);
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
    sight.leave_out();
    run_columns(sight.begin / kBlock * kBlock, sight.end);
    float least = INFINITY;
    for (int r = 0; r < count; ++r) least = maximum[r] < least ? maximum[r] : least;
    const bool is_whole = sight.begin == begin && sight.end == end;
    if (!is_whole && (sight.begin == sight.end || !sight.is_nothing_below(least))) {
      start();
      sight.begin = begin;
      sight.end = end;
      run_columns(begin / kBlock * kBlock, end);
    }
    finish();
    if (t.weights) finish_weights(sight.begin / kBlock * kBlock, sight.end);
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
    const ptrdiff_t begin = greater(first, t.part.begin);
    const ptrdiff_t end = smaller(last, t.part.end);
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
  const float unit = unit_of(t);
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
      const float factor =
          part[columns] == -INFINITY ? 0.0f : exp2f((part[columns] - maximum) * unit);
      total += factor * part[columns + 1];
      for (ptrdiff_t d = 0; d < columns; ++d) sums[d] += factor * part[d];
    }
    finish_row(t, sums, maximum, total, t.out + row * t.out_row);
  }
}

}  // namespace
}  // namespace onnx_fuse
