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

/// The coefficients are those of the highest power to the lowest.
template <class... Floats>
inline Vec polynomial(Vec x, float highest, Floats... others) {
  Vec sum = broadcast(highest);
  ((sum = fma(sum, x, broadcast(others))), ...);
  return sum;
}

constexpr float kLog2OfE = 1.44269504f;

/// 2^x for x < 128; 0 far below the smallest normal number, NaN for NaN.
///
/// With x = n + f, 0 <= f < 1, it is 2^n * 2^f; the polynomial 1 + f * p(f) of degree 6 has the
/// least relative error on [0, 1), 1.3e-8 with its coefficients as floats.
inline Vec exp2(Vec x) {
  const Split s = split(x);
  const Vec power = polynomial(s.fraction, 0.00021612919f, 0.0012467845f, 0.009675452f,
                               0.055485282f, 0.24022931f, 0.69314706f, 1.0f);
  return scale_by_power(power, s.whole);
}

/// The same where the result is rounded to bfloat16: 1 + f * p(f) of degree 3, 8.6e-5.
inline Vec rough_exp2(Vec x) {
  const Split s = split(x);
  const Vec power = polynomial(s.fraction, 0.077065907f, 0.22764623f, 0.69511652f, 1.0f);
  return scale_by_power(power, s.whole);
}

/// e^x for x <= 88. Its relative error is (1 + |x|) ulp at most: x is rounded once more on its way
/// to the base of 2.
inline Vec exp(Vec x) { return exp2(mul(x, broadcast(kLog2OfE))); }

/// tanh x with a relative error of a few ulp: Taylor below 1/4 (next term x^13 * 2e-3, below 1e-9
/// of x), 1 - 2 / (e^(2x) + 1) above, where the difference loses less than two bits.
inline Vec tanh(Vec x) {
  const Vec size = abs(x);
  const Vec square = mul(x, x);
  const Vec p =
      polynomial(square, -1382.0f / 155925, 62.0f / 2835, -17.0f / 315, 2.0f / 15, -1.0f / 3);
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
          all += row_sum(x, smaller(s.dim - d, kPanel), shift, squared);
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
