#include "amx_emulator.h"

#include <cpuid.h>
#include <immintrin.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>

namespace amx_emulator {

Answers answers;

namespace {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

/// In a signal handler: no buffered output.
[[noreturn]] void refuse(const char* rule) {
  char text[256];
  const int size = snprintf(text, sizeof text, "AMX emulator: %s\n", rule);
  const ssize_t written = write(STDERR_FILENO, text, static_cast<size_t>(size));
  (void)written;
  abort();
}

void require(bool holds, const char* rule) {
  if (!holds) refuse(rule);
}

struct Tile {
  int rows, bytes;  // of a row; both 0 if the tile is not in use
  alignas(64) uint8_t data[kMostRows][kMostBytes];
};

/// A thread's tiles.
struct Unit {
  bool configured = false;
  Tile tiles[kTiles] = {};
  ~Unit() {
    require(!configured, "a thread ended with tiles in use: every switch to it saved 8 KiB");
  }
};
thread_local Unit t_unit;

struct {
  std::atomic<long> configure, release, zero, load, store, multiply;
} g_counts;

/// An instruction as it lies in memory: VEX prefix of three bytes, opcode, ModRM, SIB,
/// displacement.
struct Instruction {
  const uint8_t* start;
  const uint8_t* end;  // behind the parts that were read
  bool wide;           // W
  int vvvv, length, prefix;
  uint8_t opcode;
  int mod, reg, rm;
  bool has_sib;
  uint64_t base, index;  // of the memory operand: base with displacement, index with scale
};

uint64_t general_register(const ucontext_t& context, int number) {
  static const int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kPlaces[number]]);
}

int64_t read_displacement(Instruction* i, int bytes) {
  int32_t wide = 0;
  int8_t narrow = 0;
  if (bytes == 1) memcpy(&narrow, i->end, 1);
  if (bytes == 4) memcpy(&wide, i->end, 4);
  i->end += bytes;
  return bytes == 1 ? narrow : wide;
}

/// The memory operand, for `mod` other than 3. `extended_index` and `extended_base` are 8 or 0.
void read_memory(const ucontext_t& context, int extended_index, int extended_base, Instruction* i) {
  int base = i->rm;
  i->has_sib = i->rm == 4;
  if (i->has_sib) {
    const int sib = *i->end++;
    base = sib & 7;
    const int index = (sib >> 3 & 7) + extended_index;
    if (index != 4) i->index = general_register(context, index) << (sib >> 6);
  }
  const bool no_base = base == 5 && i->mod == 0;
  const int bytes = i->mod == 1 ? 1 : i->mod == 2 || no_base ? 4 : 0;
  const int64_t displacement = read_displacement(i, bytes);
  if (!no_base) {
    i->base = general_register(context, base + extended_base);
  } else if (!i->has_sib) {
    i->base = reinterpret_cast<uint64_t>(i->end);  // relative to the next instruction
  }
  i->base += static_cast<uint64_t>(displacement);
}

/// Returns whether it may be an instruction of AMX.
bool decode(const ucontext_t& context, Instruction* i) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  constexpr int kMap0f38 = 2;
  if (at[0] != 0xc4 || (at[1] & 31) != kMap0f38) return false;
  const int inverted = ~at[1], second = at[2], modrm = at[4];
  i->start = at;
  i->end = at + 5;
  i->wide = second & 0x80;
  i->vvvv = ~second >> 3 & 15;
  i->length = second >> 2 & 1;
  i->prefix = second & 3;
  i->opcode = at[3];
  i->mod = modrm >> 6;
  i->reg = (modrm >> 3 & 7) + (inverted >> 7 & 1) * 8;
  i->rm = modrm & 7;
  if (i->mod == 3) {
    i->rm += (inverted >> 5 & 1) * 8;
  } else {
    read_memory(context, (inverted >> 6 & 1) * 8, (inverted >> 5 & 1) * 8, i);
  }
  return true;
}

Tile& tile_in_use(int number) {
  require(t_unit.configured, "#UD: no tiles are configured");
  require(number < kTiles, "#UD: there are eight tiles");
  require(t_unit.tiles[number].rows > 0, "#UD: the tile is not in use");
  return t_unit.tiles[number];
}

void configure(const Instruction& i) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } given;
  static_assert(sizeof given == 64, "as the instruction reads it");
  memcpy(&given, reinterpret_cast<const void*>(i.base + i.index), sizeof given);
  ++g_counts.configure;
  t_unit.configured = false;
  for (Tile& tile : t_unit.tiles) tile = {};
  if (given.palette == 0) return;
  require(given.palette == 1, "#GP: ldtilecfg: there are palettes 0 and 1");
  require(given.start_row == 0, "ldtilecfg: restarting is not emulated");
  for (uint8_t byte : given.reserved) require(byte == 0, "#GP: ldtilecfg: reserved bytes are 0");
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = given.rows[tile], bytes = given.bytes[tile];
    if (tile >= kTiles) {
      require(rows == 0 && bytes == 0, "#GP: ldtilecfg: palette 1 has eight tiles");
      continue;
    }
    require(rows <= kMostRows, "#GP: ldtilecfg: a tile has at most 16 rows");
    require(bytes <= kMostBytes, "#GP: ldtilecfg: a row has at most 64 bytes");
    require((rows == 0) == (bytes == 0), "#GP: ldtilecfg: a tile has both rows and bytes, or none");
    t_unit.tiles[tile].rows = rows;
    t_unit.tiles[tile].bytes = bytes;
  }
  t_unit.configured = true;
}

void release() {
  ++g_counts.release;
  t_unit.configured = false;
  for (Tile& tile : t_unit.tiles) tile = {};
}

void zero(const Instruction& i) {
  ++g_counts.zero;
  memset(tile_in_use(i.reg).data, 0, sizeof(Tile::data));
}

void load(const Instruction& i) {
  ++g_counts.load;
  Tile& tile = tile_in_use(i.reg);
  require(i.has_sib, "#UD: tileloadd: the operand needs a SIB byte");
  memset(tile.data, 0, sizeof tile.data);
  uint64_t from = i.base;
  for (int row = 0; row < tile.rows; ++row, from += i.index) {
    memcpy(tile.data[row], reinterpret_cast<const void*>(from), static_cast<size_t>(tile.bytes));
  }
}

void store(const Instruction& i) {
  ++g_counts.store;
  const Tile& tile = tile_in_use(i.reg);
  require(i.has_sib, "#UD: tilestored: the operand needs a SIB byte");
  uint64_t to = i.base;
  for (int row = 0; row < tile.rows; ++row, to += i.index) {
    memcpy(reinterpret_cast<void*>(to), tile.data[row], static_cast<size_t>(tile.bytes));
  }
}

float widen(const uint8_t* from) {
  uint16_t upper;
  memcpy(&upper, from, sizeof upper);
  const uint32_t bits = uint32_t{upper} << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/// c += a * b. The even and the odd elements of the depth are summed apart, by multiply-adds, and
/// these sums together are added to c. Called with the rounding and the denormals that the manual
/// wants; not inlined, so that nothing of it moves to where others hold.
__attribute__((noinline)) void multiply_tiles(Tile* c, const Tile& a, const Tile& b) {
  const __mmask16 columns = static_cast<__mmask16>((1u << c->bytes / 4) - 1);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int row = 0; row < c->rows; ++row) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < a.bytes / 4; ++k) {
      const __m512i pairs = _mm512_load_si512(b.data[k]);
      const __m512 lower = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      const __m512 higher = _mm512_castsi512_ps(_mm512_and_epi32(pairs, upper));
      even = _mm512_fmadd_ps(_mm512_set1_ps(widen(a.data[row] + 4 * k)), lower, even);
      odd = _mm512_fmadd_ps(_mm512_set1_ps(widen(a.data[row] + 4 * k + 2)), higher, odd);
    }
    const __m512 before = _mm512_load_ps(c->data[row]);
    const __m512 sum = _mm512_add_ps(before, _mm512_add_ps(even, odd));
    _mm512_store_ps(c->data[row], _mm512_maskz_mov_ps(columns, sum));
  }
  memset(c->data[c->rows], 0, static_cast<size_t>(kMostRows - c->rows) * kMostBytes);
}

void multiply(const Instruction& i) {
  ++g_counts.multiply;
  require(i.reg != i.rm && i.reg != i.vvvv && i.rm != i.vvvv,
          "#UD: tdpbf16ps: the three tiles are different ones");
  Tile& c = tile_in_use(i.reg);
  const Tile &a = tile_in_use(i.rm), &b = tile_in_use(i.vvvv);
  require(c.bytes % 4 == 0 && a.bytes % 4 == 0 && b.bytes % 4 == 0,
          "#UD: tdpbf16ps: rows have a multiple of four bytes");
  require(c.rows == a.rows, "#UD: tdpbf16ps: C and A have different numbers of rows");
  require(c.bytes == b.bytes, "#UD: tdpbf16ps: C and B have rows of different lengths");
  require(a.bytes / 4 == b.rows, "#UD: tdpbf16ps: B has not a row for each pair of A's row");
  constexpr unsigned kNoExceptions = 0x1f80, kInputsToZero = 0x40, kOutputsToZero = 0x8000;
  const unsigned before = _mm_getcsr();
  _mm_setcsr(kNoExceptions | kInputsToZero | kOutputsToZero);
  multiply_tiles(&c, a, b);
  _mm_setcsr(before);
}

enum Prefix { kNone, k66, kF3, kF2 };

/// Returns whether it is an instruction of AMX.
bool execute(const Instruction& i) {
  const bool memory = i.mod != 3;
  constexpr int kConfiguration = 0x49, kMove = 0x4b, kMultiply = 0x5c;
  const bool configures = i.opcode == kConfiguration && i.prefix == kNone && i.reg == 0;
  const bool zeroes = i.opcode == kConfiguration && i.prefix == kF2 && !memory && i.rm == 0;
  const bool moves = i.opcode == kMove && i.prefix != kNone && memory;
  const bool multiplies = i.opcode == kMultiply && i.prefix == kF3 && !memory;
  if (!configures && !zeroes && !moves && !multiplies) return false;
  require(!i.wide && i.length == 0, "#UD: VEX.W and VEX.L are 0");
  require(multiplies || i.vvvv == 0, "#UD: VEX.vvvv is not in use");
  if (multiplies) {
    multiply(i);
  } else if (zeroes) {
    zero(i);
  } else if (configures && memory) {
    configure(i);
  } else if (configures) {
    require(i.rm == 0, "#UD: tilerelease has no operand");
    release();
  } else if (i.prefix == kF3) {
    store(i);
  } else {  // with the prefix 66: tileloaddt1
    load(i);
  }
  return true;
}

struct sigaction g_before;

void handle(int, siginfo_t*, void* given) {
  ucontext_t& context = *static_cast<ucontext_t*>(given);
  Instruction i = {};
  if (decode(context, &i) && execute(i)) {
    context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(i.end);
  } else {
    sigaction(SIGILL, &g_before, nullptr);  // raised again, for whoever was there before
  }
}

constexpr unsigned kOsSavesStates = 1u << 27;                 // leaf 1, ecx
constexpr unsigned kAmxTile = 1u << 24, kAmxBf16 = 1u << 22;  // leaf 7, edx

void set(unsigned* bits, unsigned bit, bool on) { *bits = on ? *bits | bit : *bits & ~bit; }

}  // namespace

Counts counts() {
  return {g_counts.configure, g_counts.release, g_counts.zero,
          g_counts.load,      g_counts.store,   g_counts.multiply};
}

bool emulates() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmxTile) == 0 || (d & kAmxBf16) == 0;
}

void install() {
  static std::atomic<bool> installed{false};
  if (!emulates() || installed.exchange(true)) return;
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, &g_before);
}

}  // namespace amx_emulator

namespace onnx_fuse {

using amx_emulator::answers;

CpuidRegisters cpuid(unsigned leaf) {
  CpuidRegisters r = {};
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
  if (leaf == 1) amx_emulator::set(&r.ecx, amx_emulator::kOsSavesStates, answers.os_saves_states);
  if (leaf == 7) amx_emulator::set(&r.edx, amx_emulator::kAmxTile, answers.tiles);
  if (leaf == 7) amx_emulator::set(&r.edx, amx_emulator::kAmxBf16, answers.bfloat16);
  return r;
}

uint64_t saved_states() { return answers.saved_states; }

long arch_prctl(long code, uint64_t argument) {
  constexpr long kGetPermission = 0x1022, kRequestPermission = 0x1023;
  constexpr uint64_t kTileData = 18;
  if (!amx_emulator::emulates()) {
    const long answer = syscall(SYS_arch_prctl, code, argument);
    if (answer != 0) return answer;
  }
  if (code == kRequestPermission && argument == kTileData) {
    if (answers.request == 0) amx_emulator::install();
    return answers.request;
  }
  if (code == kGetPermission) {
    const uint64_t permitted = answers.saved_states & ~(uint64_t{!answers.permitted} << kTileData);
    memcpy(reinterpret_cast<void*>(argument), &permitted, sizeof permitted);
    return 0;
  }
  return -1;
}

}  // namespace onnx_fuse
