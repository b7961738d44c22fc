// K and V as attention reads them, past and new positions joined, for whichever vector type was
// included before.
#pragma once

#include <math.h>
#include <string.h>

#include "math_inl.h"

namespace onnx_fuse {
namespace {

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
  const ptrdiff_t stride = round_to_panel(t.dim), left = t.past_seq + t.seq - first;
  const ptrdiff_t rows = smaller(left, kPanel);
  const size_t bytes = static_cast<size_t>(t.dim) * sizeof(float);
  for (ptrdiff_t c = 0; c < rows; ++c) {
    const ptrdiff_t at = first + c;
    float* row = t.staging + c * stride;
    if (at < t.past_seq) {
      memcpy(row, t.past + at * t.dim, bytes);
    } else {
      prepare_row(t.source, t.norm, t.rope, at - t.past_seq, t.dim, row);
    }
    if (t.present) memcpy(t.present + at * t.dim, row, bytes);
    Products::narrow(row, t.dim);
  }
  memset(t.staging + rows * stride, 0,
         static_cast<size_t>((kPanel - rows) * stride) * sizeof(float));
  return {t.staging, stride, kPanel};
}

/// Past and new rows to `present` only.
void join_keys(const KeyTask& t) {
  const ptrdiff_t old_end = smaller(t.end, t.past_seq);
  const size_t row_bytes = static_cast<size_t>(t.dim) * sizeof(float);
  if (t.begin < old_end && t.present != t.past) {
    memcpy(t.present + t.begin * t.dim, t.past + t.begin * t.dim,
           static_cast<size_t>(old_end - t.begin) * row_bytes);
  }
  for (ptrdiff_t at = greater(t.begin, old_end); at < t.end; ++at) {
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
      const ptrdiff_t n = smaller(dim - d, kPanel);
      for (ptrdiff_t i = 0; i < n; i += kLanes) {
        const Vec v = i + kLanes <= n ? load(x + i) : load_some(x + i, n - i, 0);
        bad = add(bad, sub(v, v));
        most = max(most, abs(v));
      }
    }
  }
  return sum(bad) == 0.0f ? max_of(most) : NAN;
}

}  // namespace
}  // namespace onnx_fuse
