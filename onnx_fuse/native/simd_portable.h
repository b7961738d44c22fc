// A vector of 4 floats in plain C++, for any machine; compilers turn the loops into what they have.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kLanes = 4;
struct Vec {
  float v[kLanes];
};

// Of 16 registers of 4 lanes, 2 rows x 1 panel (four registers wide) take 8 and its weights 4.
constexpr int kMaxRows = 2;
constexpr int panels_at_once(int) { return 1; }
constexpr int kStepsOfTurn = 1;

template <class F>
inline Vec each(F f) {
  Vec r;
  for (ptrdiff_t i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}
inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline void prefetch_l1(const char*) {}
inline void prefetch_l2(const char*) {}
inline Vec zero() { return {{0, 0, 0, 0}}; }
inline Vec broadcast(float x) { return {{x, x, x, x}}; }
inline Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
/// Of each lane the lower or the upper half, a bfloat16, widened.
inline Vec lower_halves(Vec x) {
  return each([=](ptrdiff_t i) { return from_bits(bits_of(x.v[i]) << 16); });
}
inline Vec upper_halves(Vec x) {
  return each([=](ptrdiff_t i) { return from_bits(bits_of(x.v[i]) & 0xffff0000u); });
}
inline void store(float* p, Vec x) { memcpy(p, x.v, sizeof x.v); }
inline Vec add(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] + b.v[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] - b.v[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] * b.v[i]; });
}
inline Vec div(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] / b.v[i]; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([=](ptrdiff_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
/// The greater; b if one of them is NaN.
inline Vec max(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec min(Vec a, Vec b) {
  return each([=](ptrdiff_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
/// t = whole + fraction with an integral whole and 0 <= fraction < 1; what is below -127 is -127.
struct Split {
  Vec whole, fraction;
};
inline Split split(Vec t) {
  const Vec bounded = max(broadcast(-127), t);
  const Vec whole = each([=](ptrdiff_t i) { return floorf(bounded.v[i]); });
  return {whole, sub(bounded, whole)};
}
/// a * 2^n for 1 <= a < 2 and an integral n in [-127, 127], added to a's exponent: 0 for 1 *
/// 2^-127. A NaN stays one.
inline Vec scale_by_power(Vec a, Vec n) {
  return each([=](ptrdiff_t i) {
    const int whole = n.v[i] == n.v[i] ? static_cast<int>(n.v[i]) : 0;  // a NaN has no integer
    return from_bits(bits_of(a.v[i]) + (static_cast<uint32_t>(whole) << 23));
  });
}
inline Vec abs(Vec a) {
  return each([=](ptrdiff_t i) { return fabsf(a.v[i]); });
}
/// `magnitude` with the sign of `sign`; magnitude is not negative.
inline Vec copy_sign(Vec magnitude, Vec sign) {
  return each([=](ptrdiff_t i) { return copysignf(magnitude.v[i], sign.v[i]); });
}
/// a < b ? yes : no, lane by lane; no where one is NaN.
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return each([=](ptrdiff_t i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
}
/// yes where the byte is not zero.
inline Vec select_byte(const uint8_t* bytes, Vec yes, Vec no) {
  return each([=](ptrdiff_t i) { return bytes[i] ? yes.v[i] : no.v[i]; });
}
inline float sum(Vec a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
inline float max_of(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const float y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}

/// out[column * 16 + row] = in[row * stride + column] for 16 x 16 elements.
inline void transpose(const float* in, ptrdiff_t stride, float* out) {
  for (ptrdiff_t column = 0; column < 16; ++column) {
    for (ptrdiff_t row = 0; row < 16; ++row) out[column * 16 + row] = in[row * stride + column];
  }
}

}  // namespace
}  // namespace onnx_fuse
