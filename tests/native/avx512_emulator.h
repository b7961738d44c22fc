// AVX-512 in software, for tests on machines that have AVX2 alone: included before the kernels for
// AVX-512, it puts functions of its own in the place of the compiler's intrinsics. A vector is two
// halves of AVX2, and what AVX2 lacks is done lane by lane, as Intel's manual says (Software
// Developer's Manual, volume 2).
#pragma once

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {
namespace avx512_emulator {

constexpr int kFloats = 16;

template <class To, class From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// --- halves

struct FloatHalves {
  __m256 lower, upper;
};
struct IntHalves {
  __m256i lower, upper;
};

template <class F, class... Vectors>
inline __m512 of_floats(F f, Vectors... v) {
  return bits_of<__m512>(
      FloatHalves{f(bits_of<FloatHalves>(v).lower...), f(bits_of<FloatHalves>(v).upper...)});
}
template <class F, class... Vectors>
inline __m512i of_ints(F f, Vectors... v) {
  return bits_of<__m512i>(
      IntHalves{f(bits_of<IntHalves>(v).lower...), f(bits_of<IntHalves>(v).upper...)});
}

inline __m512 add_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_add_ps(x, y); }, a, b);
}
inline __m512 sub_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_sub_ps(x, y); }, a, b);
}
inline __m512 mul_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_mul_ps(x, y); }, a, b);
}
inline __m512 div_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_div_ps(x, y); }, a, b);
}
inline __m512 max_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }, a, b);
}
inline __m512 min_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_min_ps(x, y); }, a, b);
}
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return of_floats([](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
inline __m512 unpacklo_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_unpacklo_ps(x, y); }, a, b);
}
inline __m512 unpackhi_ps(__m512 a, __m512 b) {
  return of_floats([](__m256 x, __m256 y) { return _mm256_unpackhi_ps(x, y); }, a, b);
}
inline __m512i add_epi32(__m512i a, __m512i b) {
  return of_ints([](__m256i x, __m256i y) { return _mm256_add_epi32(x, y); }, a, b);
}
inline __m512i and_epi32(__m512i a, __m512i b) {
  return of_ints([](__m256i x, __m256i y) { return _mm256_and_si256(x, y); }, a, b);
}
inline __m512i or_epi32(__m512i a, __m512i b) {
  return of_ints([](__m256i x, __m256i y) { return _mm256_or_si256(x, y); }, a, b);
}
inline __m512i slli_epi32(__m512i a, int count) {
  return of_ints([count](__m256i x) { return _mm256_slli_epi32(x, count); }, a);
}
inline __m512i srli_epi32(__m512i a, int count) {
  return of_ints([count](__m256i x) { return _mm256_srli_epi32(x, count); }, a);
}
inline __m512 castsi512_ps(__m512i a) { return bits_of<__m512>(a); }
inline __m512i castps_si512(__m512 a) { return bits_of<__m512i>(a); }

// --- lanes

template <class T>
struct Lanes {
  T at[64 / sizeof(T)];
};
using Floats = Lanes<float>;

/// The vector whose lane i is f(i).
template <class T, class Vector, class F>
inline Vector each(F f) {
  Lanes<T> lanes;
  for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i) lanes.at[i] = static_cast<T>(f(i));
  return bits_of<Vector>(lanes);
}

inline __m512 set1_ps(float x) {
  return each<float, __m512>([x](int) { return x; });
}
inline __m512i set1_epi32(int x) {
  return each<int32_t, __m512i>([x](int) { return x; });
}
inline __m512 setzero_ps() { return set1_ps(0); }

/// Memory in whole registers, and only those lanes of it that a mask names.
inline __m512 loadu_ps(const void* from) {
  __m512 v;
  memcpy(&v, from, sizeof v);
  return v;
}
inline __m512i load_si512(const void* from) { return castps_si512(loadu_ps(from)); }
inline void storeu_ps(void* to, __m512 v) { memcpy(to, &v, sizeof v); }
inline void storeu_si512(void* to, __m512i v) { memcpy(to, &v, sizeof v); }
inline __m512 maskz_loadu_ps(__mmask16 mask, const float* from) {
  return each<float, __m512>([=](int i) { return mask >> i & 1 ? from[i] : 0; });
}
inline void mask_storeu_ps(float* to, __mmask16 mask, __m512 v) {
  const Floats lanes = bits_of<Floats>(v);
  for (int i = 0; i < kFloats; ++i) {
    if (mask >> i & 1) to[i] = lanes.at[i];
  }
}

template <class T, class Vector, class Mask>
inline Vector blend(Mask mask, Vector no, Vector yes) {
  const auto a = bits_of<Lanes<T>>(no), b = bits_of<Lanes<T>>(yes);
  return each<T, Vector>([&](int i) { return mask >> i & 1 ? b.at[i] : a.at[i]; });
}
inline __m512 mask_blend_ps(__mmask16 mask, __m512 no, __m512 yes) {
  return castsi512_ps(blend<int32_t>(mask, castps_si512(no), castps_si512(yes)));
}
inline __m512i mask_blend_epi32(__mmask16 mask, __m512i no, __m512i yes) {
  return blend<int32_t>(mask, no, yes);
}
inline __m512i mask_blend_epi16(__mmask32 mask, __m512i no, __m512i yes) {
  return blend<int16_t>(mask, no, yes);
}
inline __m512 maskz_mov_ps(__mmask16 mask, __m512 v) {
  return mask_blend_ps(mask, setzero_ps(), v);
}
inline __mmask16 test_epi8_mask(__m128i a, __m128i b) {
  const __m128i zeros = _mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128());
  return static_cast<__mmask16>(~_mm_movemask_epi8(zeros));
}
template <int kRelation>
inline __mmask16 cmp_ps_mask(__m512 a, __m512 b) {
  const auto x = bits_of<FloatHalves>(a), y = bits_of<FloatHalves>(b);
  const int lower = _mm256_movemask_ps(_mm256_cmp_ps(x.lower, y.lower, kRelation));
  const int upper = _mm256_movemask_ps(_mm256_cmp_ps(x.upper, y.upper, kRelation));
  return static_cast<__mmask16>(lower | upper << 8);
}

inline __m256i cvtepi32_epi16(__m512i a) {
  const auto wide = bits_of<Lanes<uint32_t>>(a);
  uint16_t narrow[kFloats];
  for (int i = 0; i < kFloats; ++i) narrow[i] = static_cast<uint16_t>(wide.at[i]);
  return bits_of<__m256i>(narrow);
}
inline __m512i cvtepu16_epi32(__m256i a) {
  uint16_t narrow[kFloats];
  memcpy(narrow, &a, sizeof narrow);
  return each<uint32_t, __m512i>([&](int i) { return narrow[i]; });
}

/// Lane i of each four from `a` (the first two) or `b`, by two bits of `choice`.
inline __m512 shuffle_ps(__m512 a, __m512 b, unsigned choice) {
  const auto x = bits_of<Floats>(a), y = bits_of<Floats>(b);
  return each<float, __m512>([&](int i) {
    const unsigned from = static_cast<unsigned>(i & ~3) + (choice >> 2 * (i & 3) & 3);
    return (i & 2 ? y : x).at[from];
  });
}
/// The same with 128 bits for a lane.
inline __m512 shuffle_f32x4(__m512 a, __m512 b, unsigned choice) {
  const auto x = bits_of<Floats>(a), y = bits_of<Floats>(b);
  return each<float, __m512>([&](int i) {
    const unsigned from = 4 * (choice >> 2 * (i / 4) & 3) + static_cast<unsigned>(i & 3);
    return (i & 8 ? y : x).at[from];
  });
}

/// All lanes, halves first.
template <class F>
inline float reduce(__m512 v, F f) {
  Floats lanes = bits_of<Floats>(v);
  for (int half = kFloats / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes.at[i] = f(lanes.at[i], lanes.at[i + half]);
  }
  return lanes.at[0];
}
inline float reduce_add_ps(__m512 v) {
  return reduce(v, [](float a, float b) { return a + b; });
}
inline float reduce_max_ps(__m512 v) {
  return reduce(v, [](float a, float b) { return a > b ? a : b; });
}

/// VREDUCEPS: what is above the whole number below; 0 for infinities.
inline __m512 fraction_ps(__m512 v) {
  const Floats x = bits_of<Floats>(v);
  return each<float, __m512>([&](int i) { return isinf(x.at[i]) ? 0 : x.at[i] - floorf(x.at[i]); });
}

/// VSCALEFPS: a * 2^floor(n), rounded once.
inline __m512 scalef_ps(__m512 a, __m512 n) {
  const Floats x = bits_of<Floats>(a), power = bits_of<Floats>(n);
  return each<float, __m512>([&](int i) {
    const double far = 400;  // from any float to 0 or infinity
    if (isnan(power.at[i])) return power.at[i];
    const double whole = fmin(fmax(floor(double{power.at[i]}), -far), far);
    return static_cast<float>(double{x.at[i]} * exp2(whole));
  });
}

// --- bfloat16, whose instructions take and make zeros of denormals

inline float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }
inline float widened(uint16_t upper) { return flushed(bits_of<float>(uint32_t{upper} << 16)); }
inline uint16_t narrowed(float x) {
  const uint32_t bits = bits_of<uint32_t>(flushed(x));
  if (isnan(x)) return static_cast<uint16_t>(bits >> 16 | 1 << 6);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __m256i cvtneps_pbh(__m512 v) {
  const Floats x = bits_of<Floats>(v);
  uint16_t narrow[kFloats];
  for (int i = 0; i < kFloats; ++i) narrow[i] = narrowed(x.at[i]);
  return bits_of<__m256i>(narrow);
}
/// The odd elements' products are added first.
template <class Pairs>
inline __m512 dpbf16_ps(__m512 sum, Pairs a, Pairs b) {
  const Floats s = bits_of<Floats>(sum);
  const auto x = bits_of<Lanes<uint16_t>>(a), y = bits_of<Lanes<uint16_t>>(b);
  return each<float, __m512>([&](int i) {
    float total = flushed(s.at[i]);
    for (const int at : {2 * i + 1, 2 * i}) {
      total = flushed(__builtin_fmaf(widened(x.at[at]), widened(y.at[at]), total));
    }
    return total;
  });
}

}  // namespace avx512_emulator
}  // namespace

// Some of the compiler's are macros, too.
#undef _mm512_cmp_ps_mask
#undef _mm512_reduce_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32

#define __m512bh __m512i
#define _mm512_add_epi32 avx512_emulator::add_epi32
#define _mm512_add_ps avx512_emulator::add_ps
#define _mm512_and_epi32 avx512_emulator::and_epi32
#define _mm512_castps_si512 avx512_emulator::castps_si512
#define _mm512_castsi512_ps avx512_emulator::castsi512_ps
#define _mm512_cmp_ps_mask(a, b, relation) avx512_emulator::cmp_ps_mask<relation>(a, b)
#define _mm512_cvtepi32_epi16 avx512_emulator::cvtepi32_epi16
#define _mm512_cvtepu16_epi32 avx512_emulator::cvtepu16_epi32
#define _mm512_cvtneps_pbh avx512_emulator::cvtneps_pbh
#define _mm512_div_ps avx512_emulator::div_ps
#define _mm512_dpbf16_ps avx512_emulator::dpbf16_ps
#define _mm512_fmadd_ps avx512_emulator::fmadd_ps
#define _mm512_load_ps avx512_emulator::loadu_ps
#define _mm512_load_si512 avx512_emulator::load_si512
#define _mm512_loadu_ps avx512_emulator::loadu_ps
#define _mm512_mask_blend_epi16 avx512_emulator::mask_blend_epi16
#define _mm512_mask_blend_epi32 avx512_emulator::mask_blend_epi32
#define _mm512_mask_blend_ps avx512_emulator::mask_blend_ps
#define _mm512_mask_storeu_ps avx512_emulator::mask_storeu_ps
#define _mm512_maskz_loadu_ps avx512_emulator::maskz_loadu_ps
#define _mm512_maskz_mov_ps avx512_emulator::maskz_mov_ps
#define _mm512_max_ps avx512_emulator::max_ps
#define _mm512_min_ps avx512_emulator::min_ps
#define _mm512_mul_ps avx512_emulator::mul_ps
#define _mm512_or_epi32 avx512_emulator::or_epi32
#define _mm512_reduce_add_ps avx512_emulator::reduce_add_ps
#define _mm512_reduce_max_ps avx512_emulator::reduce_max_ps
#define _mm512_reduce_ps(v, rounding) avx512_emulator::fraction_ps(v)
#define _mm512_scalef_ps avx512_emulator::scalef_ps
#define _mm512_set1_epi32 avx512_emulator::set1_epi32
#define _mm512_set1_ps avx512_emulator::set1_ps
#define _mm512_setzero_ps avx512_emulator::setzero_ps
#define _mm512_shuffle_f32x4 avx512_emulator::shuffle_f32x4
#define _mm512_shuffle_ps avx512_emulator::shuffle_ps
#define _mm512_slli_epi32 avx512_emulator::slli_epi32
#define _mm512_srli_epi32 avx512_emulator::srli_epi32
#define _mm512_store_ps avx512_emulator::storeu_ps
#define _mm512_storeu_ps avx512_emulator::storeu_ps
#define _mm512_storeu_si512 avx512_emulator::storeu_si512
#define _mm512_sub_ps avx512_emulator::sub_ps
#define _mm512_unpackhi_ps avx512_emulator::unpackhi_ps
#define _mm512_unpacklo_ps avx512_emulator::unpacklo_ps
#define _mm_test_epi8_mask avx512_emulator::test_epi8_mask

// What the kernels ask before they are chosen: all that is emulated is there.
#define __builtin_cpu_is(vendor) true
#define __builtin_cpu_supports(feature) __builtin_cpu_supports("avx2")
