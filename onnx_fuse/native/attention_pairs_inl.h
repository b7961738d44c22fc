// Attention's products of bfloat16 by AVX512-BF16: two neighbours in depth lie in a float's place,
// in K's and V's panels as in the rows that meet them, and one instruction multiplies 16 pairs.
#pragma once

#include "attention_inl.h"

namespace onnx_fuse {
namespace {

/// Multiplies pairs of bfloat16.
struct PairStep {
  static Vec accumulate(Vec a, Vec w, Vec sum) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(w.v))};
  }
};

struct LaidPairs {
  template <int R, int P, bool kAlone>
  static constexpr TileFunction tile = multiply_tile<R, P, float, kAlone, PairStep>;
};
constexpr TileTable kLaidPairTiles = make_tiles<LaidPairs>();

inline __m256i to_bfloat16(Vec x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)); }

/// Products of bfloat16.
struct PairProducts {
  static constexpr bool kNarrow = true;

  static void store_powers(float* row, ptrdiff_t i, Vec powers) {
    uint16_t* to = reinterpret_cast<uint16_t*>(row) + i;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bfloat16(powers));
  }
  /// Rounds n numbers in place: what is written has been read.
  static void narrow(float* row, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < 2 * words_of(n, true); i += kLanes) {
      const ptrdiff_t left = n - i;
      store_powers(row, i,
                   left >= kLanes ? load(row + i)
                   : left > 0     ? load_some(row + i, left, 0)
                                  : zero());
    }
  }
  static float greatest(const HeadRows& rows, ptrdiff_t count, ptrdiff_t words) {
    Vec bad = zero(), most = zero();
    for (ptrdiff_t row = 0; row < count; ++row) {
      const float* x = rows.data + row * rows.row_stride;
      for (ptrdiff_t i = 0; i < words; i += kLanes, x += rows.chunk_stride) {
        const __m512i pairs = _mm512_castps_si512(load(x).v);
        const Vec even = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
        const Vec odd = {_mm512_castsi512_ps(
            _mm512_and_epi32(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
        bad = add(bad, add(sub(even, even), sub(odd, odd)));
        most = max(most, max(abs(even), abs(odd)));
      }
    }
    return sum(bad) == 0.0f ? max_of(most) : NAN;
  }
  static void multiply(const Gemm& g) { onnx_fuse::multiply(g, kLaidPairTiles); }
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
      const __m512i even = _mm512_cvtepu16_epi32(to_bfloat16(row_at(from, 2 * word)));
      const __m512i odd = _mm512_cvtepu16_epi32(to_bfloat16(row_at(from, 2 * word + 1)));
      _mm512_storeu_si512(to, _mm512_or_epi32(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

void prepare_key(const KeyTask& t) {
  t.narrow ? prepare_key_for<PairProducts>(t) : prepare_key_for<FloatProducts>(t);
}

void attend(const AttendTask& t) {
  t.narrow_value ? attend_by<PairProducts>(t) : attend_by<FloatProducts>(t);
}

}  // namespace
}  // namespace onnx_fuse
