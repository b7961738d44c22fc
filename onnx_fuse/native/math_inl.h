// Elementary functions and row operations, for whichever vector type was included before.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.h"

namespace onnx_fuse {
namespace {

/// Elements of the last, partial vector are handled through a padded copy.
inline Vec load_some(const float* p, ptrdiff_t n, float fill) {
  float lanes[kLanes];
  for (ptrdiff_t i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}
inline void store_some(float* p, Vec x, ptrdiff_t n) {
  float lanes[kLanes];
  store(lanes, x);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

/// e^x for x <= 88 with an error below 2 ulp; 0 where that is no normal number, NaN for NaN.
///
/// x = n * ln 2 + r with |r| <= ln(2) / 2, where ln 2 is split so that n * 0.693359375 is exact.
/// The polynomial 1 + r + r^2 * p(r) of degree 6 has the least relative error there, 3.1e-9.
inline Vec exp(Vec x) {
  const Vec bounded = max(broadcast(-104.0f), x);  // e^-104 is 0 too
  const Vec n = round(mul(bounded, broadcast(1.44269504f)));
  Vec r = fma(n, broadcast(-0.693359375f), bounded);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(0.0013814539f);
  p = fma(p, r, broadcast(0.008368745f));
  p = fma(p, r, broadcast(0.04166839f));
  p = fma(p, r, broadcast(0.16666521f));
  p = fma(p, r, broadcast(0.49999994f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, n);
}

/// tanh x with a relative error of a few ulp: Taylor below 1/4 (next term x^13 * 2e-3, below 1e-9
/// of x), 1 - 2 / (e^(2x) + 1) above, where the difference loses less than two bits.
inline Vec tanh(Vec x) {
  const Vec size = abs(x);
  const Vec square = mul(x, x);
  Vec p = broadcast(-1382.0f / 155925);
  p = fma(p, square, broadcast(62.0f / 2835));
  p = fma(p, square, broadcast(-17.0f / 315));
  p = fma(p, square, broadcast(2.0f / 15));
  p = fma(p, square, broadcast(-1.0f / 3));
  const Vec near = fma(mul(p, square), x, x);
  const Vec one = broadcast(1.0f);
  const Vec doubled = min(broadcast(40.0f), add(size, size));  // beyond 18 it is 1
  const Vec far = sub(one, div(broadcast(2.0f), add(exp(doubled), one)));
  return select_less(size, broadcast(0.25f), near, copy_sign(far, x));
}

inline void copy_panel(const float* from, float* to) {
  for (ptrdiff_t i = 0; i < kPanel; i += kLanes) store(to + i, load(from + i));
}

/// Copies a head's row to contiguous memory.
inline void copy_row(const HeadRows& rows, ptrdiff_t row, ptrdiff_t dim, float* out) {
  const float* from = rows.data + row * rows.row_stride;
  ptrdiff_t d = 0;
  for (; d + kPanel <= dim; d += kPanel, from += rows.chunk_stride) copy_panel(from, out + d);
  for (ptrdiff_t i = 0; d + i < dim; ++i) out[d + i] = from[i];
}

/// Sum of (x - shift)^power over a row, power 1 or 2.
inline float row_sum(const float* x, ptrdiff_t n, float shift, bool squared) {
  Vec total = zero();
  const Vec s = broadcast(shift);
  for (ptrdiff_t i = 0; i < n; i += kLanes) {
    const Vec v = sub(i + kLanes <= n ? load(x + i) : load_some(x + i, n - i, shift), s);
    total = squared ? fma(v, v, total) : add(v, total);
  }
  return sum(total);
}

/// The factor of a norm from the sum of squares of n elements (about their mean for kLayer).
inline float norm_factor(NormKind kind, float squares, ptrdiff_t n, float epsilon) {
  if (kind == NormKind::kL2) {
    const float length = sqrtf(squares);
    return 1.0f / (length < epsilon ? epsilon : length);  // a NaN length stays NaN
  }
  return 1.0f / sqrtf(squares / static_cast<float>(n) + epsilon);
}

inline void normalize(const Norm& norm, ptrdiff_t row, float* x, ptrdiff_t dim) {
  if (norm.kind == NormKind::kNone) return;
  float mean = 0, factor = 0;
  if (norm.statistics) {
    mean = norm.statistics[2 * row];
    factor = norm.statistics[2 * row + 1];
  } else {
    if (norm.kind == NormKind::kLayer) {
      mean = row_sum(x, dim, 0, false) / static_cast<float>(dim);
    }
    factor = norm_factor(norm.kind, row_sum(x, dim, mean, true), dim, norm.epsilon);
  }
  const ptrdiff_t first = row * norm.weight_row;
  for (ptrdiff_t d = 0; d < dim; ++d) {
    float y = (x[d] - mean) * factor;
    if (norm.weight) y *= norm.weight[first + d];
    if (norm.bias) y += norm.bias[first + d];
    x[d] = y;
  }
}

inline void rotate(const Rope& rope, ptrdiff_t row, float* __restrict x) {
  const float* __restrict c = rope.cos + row * rope.cos_row;
  const float* __restrict s = rope.sin + row * rope.sin_row;
  const ptrdiff_t half = rope.dims / 2;
  if (rope.interleaved) {
    for (ptrdiff_t i = 0; i < rope.dims; i += 2) {
      const float a = x[i], b = x[i + 1];
      x[i] = a * c[i] - b * s[i];
      x[i + 1] = b * c[i + 1] + a * s[i + 1];
    }
  } else {
    for (ptrdiff_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * c[i] - b * s[i];
      x[i + half] = b * c[i + half] + a * s[i + half];
    }
  }
}

/// A row of Q or K as the scores see it.
inline void prepare_row(const HeadRows& rows, const Norm& norm, const Rope& rope, ptrdiff_t row,
                        ptrdiff_t dim, float* out) {
  copy_row(rows, row, dim, out);
  normalize(norm, row, out, dim);
  if (rope.dims > 0) rotate(rope, row, out);
}

void row_statistics(const RowStatistics& s) {
  const float count = static_cast<float>(s.heads * s.dim);
  for (ptrdiff_t row = 0; row < s.rows; ++row) {
    const auto total = [&](float shift, bool squared) {
      float all = 0;
      for (ptrdiff_t head = 0; head < s.heads; ++head) {
        const float* x = s.source.data + head * s.head_stride + row * s.source.row_stride;
        for (ptrdiff_t d = 0; d < s.dim; d += kPanel, x += s.source.chunk_stride) {
          all += row_sum(x, s.dim - d < kPanel ? s.dim - d : kPanel, shift, squared);
        }
      }
      return all;
    };
    const float mean = s.kind == NormKind::kLayer ? total(0, false) / count : 0.0f;
    s.statistics[2 * row] = mean;
    s.statistics[2 * row + 1] = norm_factor(s.kind, total(mean, true), s.heads * s.dim, s.epsilon);
  }
}

}  // namespace
}  // namespace onnx_fuse
