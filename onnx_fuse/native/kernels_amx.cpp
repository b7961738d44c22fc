// Intel from Sapphire Rapids (2023): matrix tiles of bfloat16 for the large products, AVX-512 for
// the rest.
//
// The instructions are written out: compilers' AMX intrinsics want literal register numbers, and
// not all of them know AMX. A machine without it never gets here.
#include "amx_system.h"
#include "simd_avx512.h"
// The vector type comes first.
#include "kernels_inl.h"
// Needs the kernels before.
#include "attention_tiles_inl.h"

namespace onnx_fuse {
namespace {

/// The tile unit itself. Its configuration belongs to the thread, so each product brings its own.
struct AmxUnit {
  static constexpr long kRowBytes = 64;

  void begin() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64, "as ldtilecfg reads it");
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  void end() { asm volatile("tilerelease"); }
  template <int kTile>
  void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load(const uint16_t* tile, long row_bytes = kRowBytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(tile), "r"(row_bytes), "i"(kTile)
                 : "memory");
  }
  template <int kC, int kA, int kB>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kTile>
  void store(float* out) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(out), "r"(kRowBytes), "i"(kTile)
                 : "memory");
  }
};

/// The processor has the tiles, the system saves them (a virtual machine's may not), and lets this
/// process use them. The permission counts for all threads, also for those that exist, and for
/// children. It is refused by a Linux before 5.16, by a filter of system calls, or if a thread has
/// an alternate signal stack too small for the tiles; onnxruntime itself asks for it as well.
bool may_use_tiles() {
  constexpr unsigned kOsSavesStates = 1u << 27;            // leaf 1, ecx
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;  // leaf 7, edx
  if ((cpuid(1).ecx & kOsSavesStates) == 0) return false;
  const unsigned features = cpuid(7).edx;
  if ((features & kTiles) == 0 || (features & kBf16) == 0) return false;
  constexpr uint64_t kTileConfiguration = 1u << 17, kTileData = 1u << 18;
  constexpr uint64_t kBoth = kTileConfiguration | kTileData;
  if ((saved_states() & kBoth) != kBoth) return false;
  constexpr long kGetPermission = 0x1022, kRequestPermission = 0x1023;  // ARCH_*_XCOMP_PERM
  constexpr uint64_t kTileDataNumber = 18;
  uint64_t permitted = 0;
  return arch_prctl(kRequestPermission, kTileDataNumber) == 0 &&
         arch_prctl(kGetPermission, reinterpret_cast<uint64_t>(&permitted)) == 0 &&
         (permitted & kTileData) != 0;
}

/// What a number of the unit's products may differ by from the stand-in's: they round in different
/// orders, and the unit flushes denormals. 72 products below 1 of each kind differ by less.
bool is_close(const float* found, const float* expected, ptrdiff_t rows, ptrdiff_t columns,
              ptrdiff_t stride) {
  for (ptrdiff_t row = 0; row < rows; ++row) {
    for (ptrdiff_t i = row * stride; i < row * stride + columns; ++i) {
      if (!(fabsf(found[i] - expected[i]) < 1e-5f)) return false;
    }
  }
  return true;
}

/// Numbers below 1, and what their upper halves are as bfloat16.
float sample(ptrdiff_t i) { return static_cast<float>(i * 53 % 97 - 48) / 49; }
uint16_t narrow_sample(ptrdiff_t i) {
  const float x = sample(i);
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}
void fill_with_pairs(float* words, ptrdiff_t count, ptrdiff_t first) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    const uint16_t pair[2] = {narrow_sample(first + 2 * i), narrow_sample(first + 2 * i + 1)};
    memcpy(words + i, pair, sizeof pair);
  }
}

/// A product with odd edges by the tile unit and by its stand-in. Up to 17 * 72 or 33 * 40 elements
/// of A.
bool unit_agrees(ptrdiff_t rows, ptrdiff_t depth, Precision precision, bool paired) {
  constexpr ptrdiff_t kMost = 33 * 40, kMostDepth = 72, kColumns = 20, kWide = 2 * kPanel;
  float a[kMost], w[kWide * kMostDepth], found[33 * kWide], expected[33 * kWide];
  alignas(64) float packed[kPanel + 3 * 3 * 2 * kTileElements / 2];  // three parts of six tiles
  for (ptrdiff_t i = 0; i < rows * depth; ++i) a[i] = sample(i * 7 + 1);
  for (ptrdiff_t i = 0; i < kWide * depth; ++i) w[i] = sample(i);
  if (paired) fill_with_pairs(w, kWide * depth / 2, 0);
  Gemm g = {};
  g.a = a;
  g.a_row = g.depth = depth;
  g.w = w;
  g.w_row = kPanel;
  g.w_panel = kPanel * (paired ? depth / 2 : depth);
  g.w_is_paired = paired;
  g.c_row = kWide;
  g.c_panel = kPanel;
  g.rows = g.packed_rows = rows;
  g.columns = kColumns;
  g.precision = precision;
  g.packed = packed;
  if (packed_tiles(g) > sizeof packed / sizeof *packed) return false;
  pack_tiles(g, packed, 0);
  g.c = found;
  gemm_with_tiles<AmxUnit>(g);
  g.c = expected;
  gemm_with_tiles<ScalarUnit>(g);
  return is_close(found, expected, rows, kColumns, kWide);
}

/// Both shapes, one of them over more than one block of the depth.
bool unit_agrees(Precision precision, bool paired) {
  return unit_agrees(17, 72, precision, paired) && unit_agrees(33, 40, precision, paired);
}

/// The same for a product of attention: two tiles of rows and three panels, all with odd edges.
bool unit_agrees_in_attention() {
  constexpr ptrdiff_t kRows = 17, kWords = 32, kColumns = 40, kWide = 3 * kPanel;
  float rows[TileProducts<AmxUnit>::kRows * kWords], w[kWide * kWords];
  float found[kRows * kWide], expected[kRows * kWide];
  fill_with_pairs(rows, sizeof rows / sizeof *rows, 7);
  fill_with_pairs(w, sizeof w / sizeof *w, 0);
  Gemm g = {};
  g.a = rows;
  g.a_row = g.depth = kWords;
  g.w = w;
  g.w_row = kPanel;
  g.w_panel = kPanel * kWords;
  g.c_row = kWide;
  g.c_panel = kPanel;
  g.rows = kRows;
  g.columns = kColumns;
  g.c = found;
  TileProducts<AmxUnit>::multiply(g);
  g.c = expected;
  TileProducts<ScalarUnit>::multiply(g);
  return is_close(found, expected, kRows, kColumns, kWide);
}

bool try_tiles() {
  return has_avx512() && may_use_tiles() && unit_agrees(Precision::kFp32, false) &&
         unit_agrees(Precision::kBf16x3, false) && unit_agrees(Precision::kBf16, true) &&
         unit_agrees_in_attention();
}

/// Tried once; trying twice at the same time does no harm.
bool available() {
  enum : int { kUnknown, kNo, kYes };
  static int state = kUnknown;
  int known = __atomic_load_n(&state, __ATOMIC_RELAXED);
  if (known == kUnknown) {
    known = try_tiles() ? kYes : kNo;
    __atomic_store_n(&state, known, __ATOMIC_RELAXED);
  }
  return known == kYes;
}

template <class Unit>
constexpr Kernels make_tile_kernels(const char* name, bool (*available)()) {
  Kernels k = make_kernels(name, available);
  k.gemm = gemm_with_tiles<Unit>;
  k.packed_floats = packed_tiles;
  k.pack = pack_tiles;
  return with_narrow_attention<TileProducts<Unit>>(k);
}

constexpr Kernels make_stand_in() {
  Kernels k = make_tile_kernels<ScalarUnit>("amx_standin", has_avx512);
  k.by_name_only = true;
  return k;
}

}  // namespace

const Kernels kAmxKernels = make_tile_kernels<AmxUnit>("amx", available);
const Kernels kAmxStandInKernels = make_stand_in();
}  // namespace onnx_fuse
