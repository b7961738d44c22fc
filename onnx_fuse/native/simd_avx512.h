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

// 32 registers: 12 rows x 2 panels are 24 accumulators and leave room for the weights; two FMA
// units of latency 4 need 8. With few rows more panels keep enough loads in flight.
constexpr int kMaxRows = 12;
constexpr int panels_at_once(int rows) { return rows <= 6 ? 4 : 2; }

inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// The greater; b if one of them is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// a * 2^n for an integral n in [-126, 127].
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

}  // namespace
}  // namespace onnx_fuse
