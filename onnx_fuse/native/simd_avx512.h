// A vector of 16 floats in one AVX-512 register.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace onnx_fuse {
namespace {

struct Vec {
  __m512 v;
};
constexpr ptrdiff_t kLanes = 16;

/// Whether this machine has what kernels on this vector use of AVX-512.
inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// 32 registers: 12 rows x 2 panels, 8 x 3 or 6 x 4 are 24 accumulators and leave room for the
// weights; two FMA units of latency 4 need 8. More panels keep more loads in flight.
constexpr int kMaxRows = 12;
constexpr int panels_at_once(int rows) { return rows <= 6 ? 4 : rows <= 8 ? 3 : 2; }
constexpr int kStepsOfTurn = 1;

inline void prefetch_l1(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
inline void prefetch_l2(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
/// Of each lane the lower or the upper half, a bfloat16, widened.
inline Vec lower_halves(Vec x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 16))};
}
inline Vec upper_halves(Vec x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_epi32(_mm512_castps_si512(x.v), upper))};
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
/// The greater; b if one of them is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
/// t as scale_by_power takes it, and its fraction, 0 <= fraction < 1 (0 for -inf).
struct Split {
  Vec whole, fraction;
};
inline Split split(Vec t) {
  return {t, {_mm512_reduce_ps(t.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}};
}
/// a * 2^floor(n); 0 for what is far below the smallest number.
inline Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline Vec abs(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  return {_mm512_castsi512_ps(_mm512_and_epi32(bits, _mm512_set1_epi32(0x7fffffff)))};
}
/// `magnitude` with the sign of `sign`; magnitude is not negative.
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const __m512i s = _mm512_and_epi32(_mm512_castps_si512(sign.v), _mm512_set1_epi32(INT32_MIN));
  return {_mm512_castsi512_ps(_mm512_or_epi32(_mm512_castps_si512(magnitude.v), s))};
}
/// a < b ? yes : no, lane by lane; no where one is NaN.
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
/// yes where the byte is not zero.
inline Vec select_byte(const uint8_t* bytes, Vec yes, Vec no) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return {_mm512_mask_blend_ps(_mm_test_epi8_mask(b, b), no.v, yes.v)};
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float max_of(Vec a) { return _mm512_reduce_max_ps(a.v); }

/// Bits of numbers whose upper halves are them as bfloat16: rounded to the nearest, ties to even. A
/// NaN stays one whatever its last bits are.
inline __m512i round_to_upper_half(Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_epi32(bits, _mm512_set1_epi32(1 << 22));
  return _mm512_mask_blend_epi32(nan, sum, quiet);
}
inline __m256i to_bfloat16(Vec x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
#else
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_upper_half(x), 16));
#endif
}
inline void store_bfloat16(uint16_t* to, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bfloat16(x));
}
/// Words of two numbers, rounded to bfloat16, the even one in the lower half.
inline Vec pair_bfloat16(Vec even, Vec odd) {
  const __m512i lower = _mm512_cvtepu16_epi32(to_bfloat16(even));
  const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bfloat16(odd)), 16);
  return {_mm512_castsi512_ps(_mm512_or_epi32(lower, upper))};
}
#ifdef __AVX512BF16__
/// sum + a's lower * w's lower + a's upper * w's upper, of words of two bfloat16.
inline Vec dot_pairs(Vec a, Vec w, Vec sum) {
  return {
      _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(w.v))};
}
#endif
/// out[column * 16 + row] = in[row * stride + column] for 16 x 16 elements.
inline void transpose(const float* in, ptrdiff_t stride, float* out) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(in + i * stride);
  for (int i = 0; i < 16; i += 2) {  // pairs of rows, element by element
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // a[4 i + j]: column j of four rows, once for each 128 bits
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int j = 0; j < 4;
       ++j) {  // columns j, j + 4, j + 8 and j + 12: a 4 x 4 transpose of 128 bits
    const __m512 lo0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    const __m512 hi0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const __m512 lo1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 hi1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_ps(out + j * 16, _mm512_shuffle_f32x4(lo0, lo1, 0x88));
    _mm512_storeu_ps(out + (j + 4) * 16, _mm512_shuffle_f32x4(hi0, hi1, 0x88));
    _mm512_storeu_ps(out + (j + 8) * 16, _mm512_shuffle_f32x4(lo0, lo1, 0xdd));
    _mm512_storeu_ps(out + (j + 12) * 16, _mm512_shuffle_f32x4(hi0, hi1, 0xdd));
  }
}

}  // namespace
}  // namespace onnx_fuse
