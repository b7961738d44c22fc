// A vector of 4 floats in one NEON register.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace onnx_fuse {
namespace {

struct Vec {
  float32x4_t v;
};
constexpr ptrdiff_t kLanes = 4;

// 32 registers: 6 rows x 1 panel (four registers wide) are 24 accumulators, 4 weights and a
// broadcast.
constexpr int kMaxRows = 6;
constexpr int panels_at_once(int rows) { return rows <= 2 ? 2 : 1; }
constexpr int kStepsOfTurn = 1;

inline void prefetch_l1(const char* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_l2(const char* p) { __builtin_prefetch(p, 0, 2); }
inline Vec zero() { return {vdupq_n_f32(0)}; }
inline Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Vec load(const float* p) { return {vld1q_f32(p)}; }
/// Of each lane the lower or the upper half, a bfloat16, widened.
inline Vec lower_halves(Vec x) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.v), 16))};
}
inline Vec upper_halves(Vec x) {
  const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v), upper))};
}
inline void store(float* p, Vec x) { vst1q_f32(p, x.v); }
inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
/// The greater; b if one of them is NaN.
inline Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
/// t = whole + fraction with an integral whole and 0 <= fraction < 1; what is below -127 is -127.
struct Split {
  Vec whole, fraction;
};
inline Split split(Vec t) {
  const Vec bounded = max(broadcast(-127), t);
  const Vec whole = {vrndmq_f32(bounded.v)};
  return {whole, sub(bounded, whole)};
}
/// a * 2^n for 1 <= a < 2 and an integral n in [-127, 127], added to a's exponent: 0 for 1 *
/// 2^-127. A NaN stays one.
inline Vec scale_by_power(Vec a, Vec n) {
  const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n.v), 23);
  return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.v), exponent))};
}
inline Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
/// `magnitude` with the sign of `sign`; magnitude is not negative.
inline Vec copy_sign(Vec magnitude, Vec sign) {
  return {vbslq_f32(vdupq_n_u32(0x80000000u), sign.v, magnitude.v)};
}
/// a < b ? yes : no, lane by lane; no where one is NaN.
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), yes.v, no.v)};
}
/// yes where the byte is not zero.
inline Vec select_byte(const uint8_t* bytes, Vec yes, Vec no) {
  uint32_t four;
  memcpy(&four, bytes, sizeof four);
  const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  const uint32x4_t keep = vmovl_u16(vget_low_u16(wide));
  return {vbslq_f32(vcgtq_u32(keep, vdupq_n_u32(0)), yes.v, no.v)};
}
inline float sum(Vec a) { return vaddvq_f32(a.v); }
inline float max_of(Vec a) { return vmaxvq_f32(a.v); }
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
inline void store_bfloat16(uint16_t* to, Vec x) {
  vst1_u16(to, vreinterpret_u16_bf16(vcvt_bf16_f32(x.v)));
}
/// Words of two numbers, rounded to bfloat16, the even one in the lower half.
inline Vec pair_bfloat16(Vec even, Vec odd) {
  const uint16x8_t lower = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(even.v));
  const uint16x8_t upper = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(odd.v));
  return {vreinterpretq_f32_u16(vzip1q_u16(lower, upper))};
}
/// sum + a's lower * w's lower + a's upper * w's upper, of words of two bfloat16.
inline Vec dot_pairs(Vec a, Vec w, Vec sum) {
  return {vbfdotq_f32(sum.v, vreinterpretq_bf16_f32(a.v), vreinterpretq_bf16_f32(w.v))};
}
#endif
/// out[column * 16 + row] = in[row * stride + column] for 16 x 16 elements.
inline void transpose(const float* in, ptrdiff_t stride, float* out) {
  for (ptrdiff_t row = 0; row < 16; row += 4) {
    for (ptrdiff_t column = 0; column < 16; column += 4) {
      float32x4x4_t square;  // stored row by row, each holds a column
      for (int i = 0; i < 4; ++i) square.val[i] = vld1q_f32(in + (row + i) * stride + column);
      const float32x4x2_t a = vtrnq_f32(square.val[0], square.val[1]);
      const float32x4x2_t b = vtrnq_f32(square.val[2], square.val[3]);
      float* to = out + column * 16 + row;
      vst1q_f32(to, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
      vst1q_f32(to + 16, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
      vst1q_f32(to + 32, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
      vst1q_f32(to + 48, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
    }
  }
}

}  // namespace
}  // namespace onnx_fuse
