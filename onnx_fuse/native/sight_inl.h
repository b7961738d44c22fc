// Which columns a tile of query rows can see, as far as its mask alone tells: causal masks and
// padding hide whole stretches at the ends, whoever made them.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels.h"

namespace onnx_fuse {
namespace {

/// A logit that may be hidden by what is added to it: no bias of a model's own is as low.
constexpr float kHidden = -1000.0f;
/// e^-104 is 0 in float32.
constexpr float kNothing = 104.0f;

struct Sight {
  const AttendTask& t;
  ptrdiff_t row;
  int count;
  float score_bound;  // no score of the rows is greater; NaN: not known
  ptrdiff_t begin, end;
  float hidden = -INFINITY;  // no logit of a column outside of [begin, end) is greater

  /// Leaves out the panels at both ends that no row of the tile sees.
  void leave_out() {
    if (!t.skip_masked || !(selects() || adds())) return;
    while (begin < end && hides((end - 1) / kPanel * kPanel)) end = (end - 1) / kPanel * kPanel;
    while (begin + kPanel <= end && hides(begin)) begin += kPanel;
  }
  /// Whether what was left out has no weight in rows whose greatest logit is at least this.
  bool is_nothing_below(float maximum) const {
    return maximum - hidden > kNothing;  // NaN if both are -inf: such a row sees nothing at all
  }

 private:
  bool selects() const { return t.mask.data && t.mask.column_stride == 1 && fills_low(); }
  /// What is added says nothing of a column that the mask gives a score, unless that is low, too.
  bool adds() const {
    const bool counts = !t.mask.data || fills_low();
    return t.bias.data && t.bias.column_stride == 1 && score_bound < INFINITY && counts;
  }
  bool fills_low() const {
    return t.fill.row_stride == 0 && t.fill.column_stride == 0 && fill() < kHidden;
  }
  float fill() const { return *static_cast<const float*>(t.fill.data); }

  bool hides(ptrdiff_t first) {
    float most = -INFINITY;
    if (selects() && !any_selected(first)) {
      most = fill();
    } else if (!adds() || !is_low(first, &most)) {
      return false;
    }
    hidden = most > hidden ? most : hidden;
    return true;
  }
  ptrdiff_t rows_of(const ScoreTerm& term) const { return term.row_stride == 0 ? 1 : count; }

  bool any_selected(ptrdiff_t first) const {
    const size_t n = static_cast<size_t>(smaller(t.total - first, kPanel));
    const uint8_t* keep =
        static_cast<const uint8_t*>(t.mask.data) + row * t.mask.row_stride + first;
    uint8_t none[kPanel] = {};
    for (ptrdiff_t r = 0; r < rows_of(t.mask); ++r, keep += t.mask.row_stride) {
      if (memcmp(keep, none, n) != 0) return true;
    }
    return false;
  }
  /// Whether no row has a bias above kHidden; then the greatest logit that there can be.
  bool is_low(ptrdiff_t first, float* most) const {
    const ptrdiff_t n = smaller(t.total - first, kPanel);
    const float* bias = static_cast<const float*>(t.bias.data) + row * t.bias.row_stride + first;
    const Vec limit = broadcast(kHidden), seen = broadcast(INFINITY);
    Vec high = broadcast(-INFINITY);
    for (ptrdiff_t r = 0; r < rows_of(t.bias); ++r, bias += t.bias.row_stride) {
      for (ptrdiff_t i = 0; i < n; i += kLanes) {
        const Vec x = i + kLanes <= n ? load(bias + i) : load_some(bias + i, n - i, -INFINITY);
        high = max(high, select_less(x, limit, x, seen));  // a NaN is seen, too
      }
    }
    const float greatest_bias = max_of(high);
    *most = greatest_bias + score_bound;
    if (t.mask.data && fill() > *most) *most = fill();
    return greatest_bias < kHidden;
  }
};

}  // namespace
}  // namespace onnx_fuse
