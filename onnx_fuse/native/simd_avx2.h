// A vector of 8 floats in one AVX register; needs AVX2 and FMA.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace onnx_fuse {
namespace {

struct Vec {
  __m256 v;
};
constexpr ptrdiff_t kLanes = 8;

// 16 registers: 6 rows x 1 panel (two registers wide) are 12 accumulators, 2 weights, 1 broadcast;
// two FMA units of latency 4 or 5 need 8 to 10.
constexpr int kMaxRows = 6;
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
// 23 instructions for a step of 6 rows and a panel, 27 if each step has a turn of its own.
constexpr int kStepsOfTurn = 4;

inline void prefetch_l1(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
inline void prefetch_l2(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
/// Of each lane the lower or the upper half, a bfloat16, widened.
inline Vec lower_halves(Vec x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 16))};
}
inline Vec upper_halves(Vec x) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_and_ps(x.v, _mm256_castsi256_ps(upper))};
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
/// The same in c's register: of several steps in a row GCC makes products of all three forms, whose
/// sums move from register to register.
inline Vec fma_in_place(Vec a, Vec b, Vec c) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(c.v) : "x"(a.v), "x"(b.v));
  return c;
}
/// The greater; b if one of them is NaN.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
/// t = whole + fraction with an integral whole and 0 <= fraction < 1; what is below -127 is -127.
struct Split {
  Vec whole, fraction;
};
inline Split split(Vec t) {
  const Vec bounded = max(broadcast(-127), t);
  const Vec whole = {_mm256_floor_ps(bounded.v)};
  return {whole, sub(bounded, whole)};
}
/// a * 2^n for 1 <= a < 2 and an integral n in [-127, 127], added to a's exponent: 0 for 1 *
/// 2^-127. A NaN stays one.
inline Vec scale_by_power(Vec a, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), exponent))};
}
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
/// `magnitude` with the sign of `sign`; magnitude is not negative.
inline Vec copy_sign(Vec magnitude, Vec sign) {
  return {_mm256_or_ps(magnitude.v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
}
/// a < b ? yes : no, lane by lane; no where one is NaN.
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
/// yes where the byte is not zero.
inline Vec select_byte(const uint8_t* bytes, Vec yes, Vec no) {
  const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  const __m256i is_zero = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(b), _mm256_setzero_si256());
  return {_mm256_blendv_ps(yes.v, no.v, _mm256_castsi256_ps(is_zero))};
}
inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float max_of(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/// 8 x 8 elements of transpose.
inline void transpose_square(const float* in, ptrdiff_t stride, float* out) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * 16, _mm256_permute2f128_ps(a[j], a[4 + j], 0x20));
    _mm256_storeu_ps(out + (j + 4) * 16, _mm256_permute2f128_ps(a[j], a[4 + j], 0x31));
  }
}
/// out[column * 16 + row] = in[row * stride + column] for 16 x 16 elements.
inline void transpose(const float* in, ptrdiff_t stride, float* out) {
  transpose_square(in, stride, out);
  transpose_square(in + 8, stride, out + 8 * 16);
  transpose_square(in + 8 * stride, stride, out + 8);
  transpose_square(in + 8 * stride + 8, stride, out + 8 * 16 + 8);
}

}  // namespace
}  // namespace onnx_fuse
