// A row's scores, from products to powers: scale, cap, bias and masks, causality and windows.
#pragma once

#include <math.h>
#include <string.h>

#include "math_inl.h"

namespace onnx_fuse {
namespace {

/// One past the last column that causality lets a row see.
inline ptrdiff_t visible_end_of(const AttendTask& t, ptrdiff_t row) {
  return row * t.row_step + t.past + 1;
}

/// The first column of a row's window; negative where the window begins before the columns.
inline ptrdiff_t window_begin_of(const AttendTask& t, ptrdiff_t row) {
  const ptrdiff_t end = visible_end_of(t, row);
  return (t.window_ends_inside && end > t.total ? t.total : end) - t.window;
}

/// Scores are logits, or products if nothing but a scale makes logits of them, as a greatest
/// product has the greatest logit. A sink is a logit.
inline bool is_only_scaled(const AttendTask& t) {
  return t.scale > 0 && t.softcap == 0 && !t.bias.data && !t.mask.data && !t.sink;
}

/// e^(a score's logit) = 2^(score * unit).
inline float unit_of(const AttendTask& t) {
  return is_only_scaled(t) ? t.scale * kLog2OfE : kLog2OfE;
}

constexpr float kNumbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// One row's columns [first, first + n) of `total`, from products to scores in place, and then to
/// powers in the form of a factor.
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
  ptrdiff_t within(ptrdiff_t columns) const { return smaller(greater(columns, 0), n); }
  /// x, and -inf in the lanes outside of [begin, end).
  static Vec keep(Vec x, ptrdiff_t begin, ptrdiff_t end) {
    const Vec number = load(kNumbers), none = broadcast(-INFINITY);
    const Vec kept = select_less(number, broadcast(static_cast<float>(end)), x, none);
    return select_less(number, broadcast(static_cast<float>(begin)), none, kept);
  }
  /// s = scores, -inf where hidden and in the padding; returns the greatest.
  float make_scores() const {
    const bool raw = is_only_scaled(t);
    const ptrdiff_t end = visible(), begin = smaller(hidden(), end);
    const ptrdiff_t first = begin / kLanes * kLanes, last = begin < end ? end : first;
    const Vec none = broadcast(-INFINITY);
    Vec m = none;
    ptrdiff_t i = 0;
    for (; i < first; i += kLanes) store(s + i, none);
    for (; i < last; i += kLanes) {
      const bool whole = begin <= i && i + kLanes <= end;
      Vec x = raw ? load(s + i) : logits(i);
      if (!whole) x = keep(x, begin - i, end - i);
      if (!raw || !whole) store(s + i, x);
      m = max(m, x);
    }
    for (; i < padded(); i += kLanes) store(s + i, none);
    return max_of(m);
  }
  /// The same where the products are the scores and all of them are seen.
  float greatest() const {
    Vec m = load(s);
    for (ptrdiff_t i = kLanes; i < n; i += kLanes) m = max(m, load(s + i));
    return max_of(m);
  }
  /// s = 2^((s - shift) * unit); returns the sum.
  float exponentiate(float shift) const {
    Vec total = zero();
    const Vec all_shift = broadcast(shift), unit = broadcast(unit_of(t));
    for (ptrdiff_t i = 0; i < padded(); i += kLanes) {
      const Vec e = Products::power_of_2(mul(sub(load(s + i), all_shift), unit));
      Products::store_powers(s, i, e);
      total = add(total, e);
    }
    return sum(total);
  }
};

}  // namespace
}  // namespace onnx_fuse
