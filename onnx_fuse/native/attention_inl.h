// Attention of one head, for whichever vector type was included before.
//
// Query rows are taken in tiles of kMaxRows, K and V in blocks of kBlock positions. The scores of a
// tile and a block (12 * 256 * 4 B = 12 KiB) stay in L1 together with the tile's running results:
// the softmax's maximum and sum, and the unnormalised output, which are scaled when the maximum
// grows.
#pragma once

#include <math.h>
#include <string.h>

#include "gemm_inl.h"
#include "math_inl.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kBlock = 256;

/// Rows 16 * i .. of `rows` (16, padded) as columns of a panel: panel[d][column] = rows[column][d].
inline void store_panel(const float* rows, ptrdiff_t row_stride, ptrdiff_t dim, ptrdiff_t columns,
                        ptrdiff_t first, float* panel) {
  for (ptrdiff_t d = 0; d < dim; ++d) {
    float* out = panel + d * kPanel + first;
    for (ptrdiff_t c = 0; c < columns; ++c) out[c] = rows[c * row_stride + d];
  }
}

void prepare_key(const KeyTask& t) {
  const ptrdiff_t total = t.past_seq + t.seq;
  const ptrdiff_t stride = round_to_panel(t.dim);
  for (ptrdiff_t first = 0; first < total; first += kPanel) {
    const ptrdiff_t columns = total - first < kPanel ? total - first : kPanel;
    float* panel = t.panels + first * t.dim;
    for (ptrdiff_t c = 0; c < columns; ++c) {
      const ptrdiff_t at = first + c;
      float* row = t.staging + c * stride;
      const size_t bytes = static_cast<size_t>(t.dim) * sizeof(float);
      if (at < t.past_seq) {
        memcpy(row, t.past + at * t.dim, bytes);
      } else {
        prepare_row(t.source, t.norm, t.rope, at - t.past_seq, t.dim, row);
      }
      if (t.present) memcpy(t.present + at * t.dim, row, bytes);
    }
    for (ptrdiff_t c = columns; c < kPanel; ++c)
      memset(t.staging + c * stride, 0, sizeof(float) * t.dim);
    store_panel(t.staging, stride, t.dim, kPanel, 0, panel);
  }
}

void prepare_value(const ValueTask& t) {
  const size_t padding = static_cast<size_t>(t.out_row - t.dim) * sizeof(float);
  for (ptrdiff_t at = 0; at < t.past_seq + t.seq; ++at) {
    float* out = t.out + at * t.out_row;
    if (at < t.past_seq) {
      memcpy(out, t.past + at * t.dim, static_cast<size_t>(t.dim) * sizeof(float));
    } else {
      copy_row(t.source, at - t.past_seq, t.dim, out);
    }
    memset(out + t.dim, 0, padding);
  }
}

bool all_finite(const HeadRows& rows, ptrdiff_t count, ptrdiff_t dim) {
  Vec bad = zero();  // x - x is NaN for inf and NaN, and a NaN stays
  for (ptrdiff_t row = 0; row < count; ++row) {
    const float* x = rows.data + row * rows.row_stride;
    for (ptrdiff_t d = 0; d < dim; d += kPanel, x += rows.chunk_stride) {
      const ptrdiff_t n = dim - d < kPanel ? dim - d : kPanel;
      for (ptrdiff_t i = 0; i < n; i += kLanes) {
        const Vec v = i + kLanes <= n ? load(x + i) : load_some(x + i, n - i, 0);
        bad = add(bad, sub(v, v));
      }
    }
  }
  return sum(bad) == 0.0f;
}

ptrdiff_t attend_scratch(ptrdiff_t dim, ptrdiff_t value_dim) {
  return kMaxRows * (round_to_panel(dim) + kBlock + round_to_panel(value_dim));
}

/// Scores of one row, columns [first, first + n) of `total`, from products to logits in place.
struct ScoreRow {
  const AttendTask& t;
  ptrdiff_t row;
  ptrdiff_t first, n;
  float* s;  // n rounded up to whole panels may be written

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
  void scale_and_cap() const {
    const Vec scale = broadcast(t.scale);
    const Vec cap = broadcast(t.softcap), inverse = broadcast(1.0f / t.softcap);
    for (ptrdiff_t i = 0; i < n; i += kLanes) {
      Vec x = mul(load(s + i), scale);
      if (t.softcap > 0) x = mul(cap, tanh(mul(x, inverse)));
      if (t.bias.data) x = add(x, value(t.bias, i));
      store(s + i, x);
    }
  }
  void select() const {
    const uint8_t* keep = bytes(t.mask);
    if (t.mask.column_stride == 0) {
      if (*keep) return;
      for (ptrdiff_t i = 0; i < n; i += kLanes) store(s + i, value(t.fill, i));
      return;
    }
    for (ptrdiff_t i = 0; i < n; i += kLanes) {
      uint8_t last[kLanes] = {};
      const bool whole = i + kLanes <= n;
      if (!whole) memcpy(last, keep + i, static_cast<size_t>(n - i));
      store(s + i, select_byte(whole ? keep + i : last, load(s + i), value(t.fill, i)));
    }
  }
  /// Hides what lies after the row's own position and the padding of the last panel.
  void hide() const {
    ptrdiff_t visible = n;
    if (t.causal) {
      const ptrdiff_t limit = row + t.past + 1 - first;
      visible = limit < 0 ? 0 : limit < n ? limit : n;
    }
    for (ptrdiff_t i = visible; i < round_to_panel(n); ++i) s[i] = -INFINITY;
  }
  float greatest(float start) const {
    Vec m = broadcast(start);
    for (ptrdiff_t i = 0; i < n; i += kLanes) m = max(m, load(s + i));
    return max_of(m);
  }
  /// s = e^(s - shift); returns the sum.
  float exponentiate(float shift) const {
    Vec total = zero();
    const Vec m = broadcast(shift);
    for (ptrdiff_t i = 0; i < n; i += kLanes) {
      const Vec e = exp(sub(load(s + i), m));
      store(s + i, e);
      total = add(total, e);
    }
    return sum(total);
  }
};

/// Up to kMaxRows query rows with their running softmax.
struct QueryTile {
  const AttendTask& t;
  ptrdiff_t row;  // first, among all rows of the head
  int count;
  float* query;   // (count, query_stride)
  float* scores;  // (count, kBlock)
  float* out;     // (count, out_stride), not yet divided by the sum
  ptrdiff_t query_stride, out_stride;
  float maximum[kMaxRows], total[kMaxRows];

  QueryTile(const AttendTask& task, ptrdiff_t first, int rows)
      : t(task),
        row(first),
        count(rows),
        query(task.scratch),
        scores(query + kMaxRows * round_to_panel(task.dim)),
        out(scores + kMaxRows * kBlock),
        query_stride(round_to_panel(task.dim)),
        out_stride(round_to_panel(task.value_dim)) {
    for (int r = 0; r < count; ++r) {
      prepare_row(t.query, t.norm, t.rope, row + r, t.dim, query + r * query_stride);
      maximum[r] = -INFINITY;
      total[r] = 0;
      if (t.sink && *t.sink != -INFINITY) {
        maximum[r] = *t.sink;
        total[r] = *t.sink - *t.sink == 0 ? 1.0f : NAN;  // e^(sink - sink)
      }
    }
  }

  /// One past the last column that a row of the tile can see, if hidden ones may be skipped.
  ptrdiff_t visible_end() const {
    if (!t.causal || !t.skip_masked) return t.total;
    const ptrdiff_t end = row + count + t.past;
    return end < t.total ? end : t.total;
  }

  void multiply_scores(ptrdiff_t first, ptrdiff_t n) {
    gemm({query, query_stride, t.key_panels + first * t.dim, kPanel, kPanel * t.dim, false, nullptr,
          scores, kBlock, kPanel, count, round_to_panel(n), t.dim, false});
  }

  void soften(ptrdiff_t first, ptrdiff_t n) {
    for (int r = 0; r < count; ++r) {
      const ScoreRow s{t, row + r, first, n, scores + r * kBlock};
      s.scale_and_cap();
      if (t.mask.data) s.select();
      s.hide();
      const float before = maximum[r];
      const float now = s.greatest(before);
      // As long as everything was -inf nothing may be subtracted: -inf - -inf is no 0.
      const float shift = now == -INFINITY ? 0.0f : now;
      if (before != now && first > 0) {
        const float shrink = expf(before - shift);
        total[r] *= shrink;
        for (ptrdiff_t d = 0; d < out_stride; ++d) out[r * out_stride + d] *= shrink;
      } else if (before != now) {
        total[r] *= expf(before - shift);
      }
      total[r] += s.exponentiate(shift);
      maximum[r] = now;
    }
  }

  void multiply_values(ptrdiff_t first, ptrdiff_t n) {
    gemm({scores, kBlock, t.value + first * t.value_row, t.value_row, t.value_panel, false, nullptr,
          out, out_stride, kPanel, count, out_stride, n, first > 0});
  }

  void finish() {
    for (int r = 0; r < count; ++r) {
      const float* from = out + r * out_stride;
      float* to = t.out + (row - t.first_row + r) * t.out_row;
      const bool is_nan = maximum[r] == -INFINITY || total[r] != total[r];
      const float factor = is_nan ? NAN : 1.0f / total[r];
      if (is_nan && t.zero_nan) {
        clear_row(to);
      } else {
        for (ptrdiff_t d = 0; d < t.value_dim; ++d) to[d] = from[d] * factor;
      }
    }
  }

  /// A row whose weights are all zero: 0 * v, which is NaN for a v that is not finite.
  void clear_row(float* to) const {
    for (ptrdiff_t d = 0; d < t.value_dim; ++d) {
      const float* v = t.value + d / kPanel * t.value_panel + d % kPanel;
      float all = 0;
      for (ptrdiff_t i = 0; i < t.total; ++i) all += 0.0f * v[i * t.value_row];
      to[d] = all;
    }
  }

  void run() {
    if (t.total == 0) memset(out, 0, sizeof(float) * static_cast<size_t>(count * out_stride));
    const ptrdiff_t end = visible_end();
    for (ptrdiff_t first = 0; first < end; first += kBlock) {
      const ptrdiff_t n = end - first < kBlock ? end - first : kBlock;
      multiply_scores(first, n);
      soften(first, n);
      multiply_values(first, n);
    }
    if (t.total == 0) {  // an empty sum, not a row of masked scores
      for (int r = 0; r < count; ++r) maximum[r] = 0, total[r] = 1;
    }
    finish();
  }
};

void attend(const AttendTask& t) {
  for_row_tiles(
      t.rows, [&](ptrdiff_t first, int count) { QueryTile(t, t.first_row + first, count).run(); });
}

}  // namespace
}  // namespace onnx_fuse
