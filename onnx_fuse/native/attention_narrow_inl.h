// Factors of attention's products as bfloat16: two neighbours in depth lie in a float's place, in
// K's and V's panels as in the rows that meet them. A tile of 16 words of 16 columns is what a
// matrix unit takes, too.
#pragma once

#include "attention_inl.h"

namespace onnx_fuse {
namespace {

/// The form of the factors; what multiplies them comes with `Products`.
struct NarrowForm {
  static constexpr bool kNarrow = true;

  static Vec power_of_2(Vec x) { return rough_exp2(x); }
  static void store_powers(float* row, ptrdiff_t i, Vec powers) {
    store_bfloat16(reinterpret_cast<uint16_t*>(row) + i, powers);
  }
  /// Rounds n numbers in place: what is written has been read.
  static void narrow(float* row, ptrdiff_t n) {
    const auto numbers = [&](ptrdiff_t i) {
      if (i + kLanes <= n) return load(row + i);
      return i < n ? load_some(row + i, n - i, 0) : zero();
    };
    for (ptrdiff_t i = 0; i < 2 * words_of(n, true); i += kLanes) store_powers(row, i, numbers(i));
  }
  static float greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t words) {
    Vec bad = zero(), most = zero();
    for (ptrdiff_t row = 0; row < count; ++row) {
      const float* x = rows.data + row * rows.row_stride;
      for (ptrdiff_t i = 0; i < words; i += kLanes, x += rows.chunk_stride) {
        const Vec pairs = load(x), even = lower_halves(pairs), odd = upper_halves(pairs);
        bad = add(bad, add(sub(even, even), sub(odd, odd)));
        most = max(most, max(abs(even), abs(odd)));
      }
    }
    return sum(bad) == 0.0f ? max_of(most) : NAN;
  }
};

void narrow_value(const NarrowTask& t) {
  const ptrdiff_t words = words_of(t.rows, true);
  const auto row_at = [&](const float* column, ptrdiff_t row) {
    return row < t.rows ? load(column + row * t.source.row_stride) : zero();
  };
  for (ptrdiff_t panel = 0; panel < panels_of(t.dim); ++panel) {
    const float* from = t.source.data + panel * t.source.chunk_stride;
    float* to = t.out + panel * t.out_panel;
    for (ptrdiff_t word = 0; word < words; ++word, to += kPanel) {
      for (ptrdiff_t i = 0; i < kPanel; i += kLanes) {
        const Vec even = row_at(from + i, 2 * word), odd = row_at(from + i, 2 * word + 1);
        store(to + i, pair_bfloat16(even, odd));
      }
    }
  }
}

template <class Products>
void prepare_key_in_either(const KeyTask& t) {
  t.narrow ? prepare_key_for<Products>(t) : prepare_key_for<FloatProducts>(t);
}

template <class Products>
void attend_in_either(const AttendTask& t) {
  t.narrow_value ? attend_by<Products>(t) : attend_by<FloatProducts>(t);
}

template <class Products>
ptrdiff_t attend_scratch_of_either(ptrdiff_t dim, ptrdiff_t value_dim, ptrdiff_t weight_columns) {
  return greater(attend_scratch_for<Products>(dim, value_dim, weight_columns),
                 attend_scratch_for<FloatProducts>(dim, value_dim, weight_columns));
}

/// Kernels whose attention has narrow products, too.
template <class Products>
constexpr Kernels with_narrow_attention(Kernels k) {
  k.prepare_key = prepare_key_in_either<Products>;
  k.attend = attend_in_either<Products>;
  k.attend_scratch = attend_scratch_of_either<Products>;
  k.narrow_value = narrow_value;
  return k;
}

}  // namespace
}  // namespace onnx_fuse
