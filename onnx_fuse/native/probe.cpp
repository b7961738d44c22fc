// Measures what bounds a block on this machine: the most multiplications and additions a second by
// each instruction set, and how long its weights take to be read. A library of its own, which the
// benchmarks load (onnx_fuse/runtime/limits.py); nothing else has it.
//
// Compiled with -ffp-contract=fast, so that acc * a + b is one instruction.
#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "dispatch.h"

#if defined(ONNX_FUSE_X86)
#include <immintrin.h>
#elif defined(ONNX_FUSE_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kTries = 25;
constexpr double kTrySeconds = 0.004;  // shorter than a scheduler's slice
// How far ahead a reader calls for bytes. The processor's own calls follow a reader more slowly:
// without ours it reads 43 GB/s instead of 64 where L3 holds a part, and 107 instead of 126 where
// it holds all.
constexpr size_t kAhead = 12 << 10;

// Read once a call, so that no compiler knows what is multiplied; written, so that none drops it.
volatile float g_factor = 0.999f, g_summand = 0.001f;
std::atomic<float> g_sink{0};

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count();
}

/// Seconds from the first start to the last end of `work(thread, repeats)` on all threads at once.
double time_once(int threads, long repeats, const std::function<void(int, long)>& work) {
  std::atomic<int> waiting{threads};
  std::vector<double> starts(threads), ends(threads);
  auto body = [&](int thread) {
    --waiting;
    while (waiting.load() > 0) {
    }
    starts[thread] = now();
    work(thread, repeats);
    ends[thread] = now();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& other : others) other.join();
  return *std::max_element(ends.begin(), ends.end()) -
         *std::min_element(starts.begin(), starts.end());
}

/// Repeats of the work a second, the best of kTries.
double best_rate(int threads, const std::function<void(int, long)>& work) {
  long repeats = 1;
  double seconds = time_once(threads, repeats, work);
  while (seconds < kTrySeconds) {
    repeats *= 2;
    seconds = time_once(threads, repeats, work);
  }
  double best = repeats / seconds;
  for (int i = 1; i < kTries; ++i) {
    best = std::max(best, repeats / time_once(threads, repeats, work));
  }
  return best;
}

// --- arithmetic: as many independent chains as hide the latency and fit into the registers

constexpr long kSteps = 1000;

template <typename Vector, int kChains>
inline __attribute__((always_inline)) void multiply_add(long repeats) {
  Vector chains[kChains], factor, summand;
  for (size_t i = 0; i < sizeof(Vector) / sizeof(float); ++i) {
    factor[i] = g_factor;
    summand[i] = g_summand;
  }
  for (int c = 0; c < kChains; ++c) chains[c] = factor * static_cast<float>(c);
  for (long step = 0; step < repeats * kSteps; ++step) {
#pragma GCC unroll 32
    for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * factor + summand;
  }
  for (int c = 1; c < kChains; ++c) chains[0] += chains[c];
  g_sink = chains[0][0];
}

template <typename Vector, int kChains>
constexpr double flops() {
  return 2.0 * kSteps * kChains * (sizeof(Vector) / sizeof(float));
}

/// Reads the bytes once, front to back. They are aligned, and a multiple of 8 vectors.
template <typename Vector>
inline __attribute__((always_inline)) void read_all(const char* bytes, size_t count) {
  Vector sums[8] = {};
  for (size_t i = 0; i < count; i += sizeof(sums)) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      __builtin_prefetch(bytes + i + kAhead + k * sizeof(Vector));
      sums[k] |= *reinterpret_cast<const Vector*>(bytes + i + k * sizeof(Vector));
    }
  }
  for (int k = 1; k < 8; ++k) sums[0] |= sums[k];
  g_sink = static_cast<float>(sums[0][0]);
}

template <size_t kBytes>
struct Of {
  typedef float Floats __attribute__((vector_size(kBytes)));
  typedef unsigned Words __attribute__((vector_size(kBytes), may_alias));
};

struct Unit {
  const char* name;  // of the kernels that use it, as in dispatch.cpp
  double flops;      // of one repeat
  void (*run)(long repeats);
};

#if defined(ONNX_FUSE_X86)

__attribute__((target("avx2,fma"))) void avx2(long n) { multiply_add<Of<32>::Floats, 12>(n); }
__attribute__((target("avx512f"))) void avx512(long n) { multiply_add<Of<64>::Floats, 24>(n); }

__attribute__((target("avx512f,avx512bf16"))) void avx512bf16(long repeats) {
  __m512 chains[24];
  const __m512i pairs = _mm512_set1_epi32(0x3f803f80);  // 1, 1
  for (int c = 0; c < 24; ++c) chains[c] = _mm512_set1_ps(g_factor * static_cast<float>(c));
  for (long step = 0; step < repeats * kSteps; ++step) {
#pragma GCC unroll 32
    for (int c = 0; c < 24; ++c) {
      chains[c] = _mm512_dpbf16_ps(chains[c], (__m512bh)pairs, (__m512bh)pairs);
    }
  }
  for (int c = 1; c < 24; ++c) chains[0] = _mm512_add_ps(chains[0], chains[c]);
  g_sink = _mm512_cvtss_f32(chains[0]);
}

__attribute__((target("amx-tile,amx-bf16"))) void amx(long repeats) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) float result[256] = {};
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, result, 64);
  _tile_loadd(5, result, 64);
  _tile_loadd(6, result, 64);
  _tile_loadd(7, result, 64);
  for (long step = 0; step < repeats * kSteps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, result, 64);
  _tile_release();
  g_sink = result[0];
}

__attribute__((target("avx2"))) void read_avx2(const char* bytes, size_t count) {
  read_all<Of<32>::Words>(bytes, count);
}
__attribute__((target("avx512f"))) void read_avx512(const char* bytes, size_t count) {
  read_all<Of<64>::Words>(bytes, count);
}

constexpr Unit kUnits[] = {
    {"avx2", flops<Of<32>::Floats, 12>(), avx2},
    {"avx512", flops<Of<64>::Floats, 24>(), avx512},
    {"avx512bf16", 2 * flops<Of<64>::Floats, 24>(), avx512bf16},
    {"amx", kSteps * 4 * 2.0 * 16 * 16 * 32, amx},
};

#elif defined(ONNX_FUSE_NEON)

void neon(long n) { multiply_add<Of<16>::Floats, 24>(n); }

__attribute__((target("arch=armv8.2-a+bf16"))) void neonbf16(long repeats) {
  float32x4_t chains[24];
  const bfloat16x8_t pairs = vreinterpretq_bf16_f32(vdupq_n_f32(g_factor));  // any finite two
  for (int c = 0; c < 24; ++c) chains[c] = vdupq_n_f32(g_factor * static_cast<float>(c));
  for (long step = 0; step < repeats * kSteps; ++step) {
#pragma GCC unroll 32
    for (int c = 0; c < 24; ++c) chains[c] = vbfdotq_f32(chains[c], pairs, pairs);
  }
  for (int c = 1; c < 24; ++c) chains[0] = vaddq_f32(chains[0], chains[c]);
  g_sink = vaddvq_f32(chains[0]);
}

constexpr Unit kUnits[] = {
    {"neon", flops<Of<16>::Floats, 24>(), neon},
    {"neonbf16", 2 * flops<Of<16>::Floats, 24>(), neonbf16},
};

#else

void portable(long n) { multiply_add<Of<16>::Floats, 12>(n); }

constexpr Unit kUnits[] = {{"portable", flops<Of<16>::Floats, 12>(), portable}};

#endif

void read_portable(const char* bytes, size_t count) { read_all<Of<16>::Words>(bytes, count); }

bool is_available(const char* name) {
  for (const onnx_fuse::Kernels* const* k = onnx_fuse::kAllKernels; *k; ++k) {
    if (strcmp((*k)->name, name) == 0) return (*k)->available();
  }
  return false;
}

/// Seconds in which a word goes to another thread and back.
double round_trip() {
  alignas(128) std::atomic<int> turn{0};
  return 1 / best_rate(2, [&](int thread, long repeats) {
           for (long i = 0; i < repeats; ++i) {
             while (turn.load(std::memory_order_acquire) != thread) {
             }
             turn.store(1 - thread, std::memory_order_release);
           }
         });
}

using Read = void (*)(const char*, size_t);

Read widest_read() {
#if defined(ONNX_FUSE_X86)
  if (is_available("avx512")) return read_avx512;
  if (is_available("avx2")) return read_avx2;
#endif
  return read_portable;
}

constexpr int kUnitCount = sizeof(kUnits) / sizeof(kUnits[0]);

}  // namespace

#define ONNX_FUSE_EXPORT __attribute__((visibility("default")))

extern "C" {

/// The name of the unit at this index, nullptr behind the last one and "" if this machine lacks it.
ONNX_FUSE_EXPORT const char* onnx_fuse_probe_unit(int index) {
  if (index < 0 || index >= kUnitCount) return nullptr;
  return is_available(kUnits[index].name) ? kUnits[index].name : "";
}

/// The unit's flop/s on all threads together: the best of several tries, a bound and no average.
ONNX_FUSE_EXPORT double onnx_fuse_probe_peak(int index, int threads) {
  const Unit& unit = kUnits[index];
  return best_rate(threads, [&](int, long repeats) { unit.run(repeats); }) * unit.flops * threads;
}

/// Seconds in which a word goes to another thread and back.
ONNX_FUSE_EXPORT double onnx_fuse_probe_round_trip() { return round_trip(); }

/// Seconds in which the threads together read `count` bytes once, a piece of 512 bytes at least
/// each. `bytes` is aligned to 64.
ONNX_FUSE_EXPORT double onnx_fuse_probe_read(const char* bytes, size_t count, int threads) {
  const Read read = widest_read();
  const size_t share = count / static_cast<size_t>(threads) / 512 * 512;
  return time_once(threads, 1, [&](int thread, long) {
    read(bytes + share * static_cast<size_t>(thread), share);
  });
}

}  // extern "C"
