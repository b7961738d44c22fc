// Tests the AMX path by its true instructions, which amx_emulator.cpp executes; and the emulator
// itself, against loops.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "amx_emulator.h"
#include "dispatch.h"

using namespace onnx_fuse;

namespace {

std::mt19937 g_random(7);
int g_failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  fprintf(stderr, "wrong: %s\n", what.c_str());
  ++g_failures;
}

// --- instructions

struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void configure(const Configuration& c) { asm volatile("ldtilecfg %0" ::"m"(c)); }
void release() { asm volatile("tilerelease"); }
void zero_3() { asm volatile("tilezero %tmm3"); }
void load_3(const void* from, long stride) {
  asm volatile("tileloadd (%0,%1), %%tmm3" ::"r"(from), "r"(stride) : "memory");
}
void store_3(void* to, long stride) {
  asm volatile("tilestored %%tmm3, (%0,%1)" ::"r"(to), "r"(stride) : "memory");
}
void load_4(const void* from, long stride) {
  asm volatile("tileloadd (%0,%1), %%tmm4" ::"r"(from), "r"(stride) : "memory");
}
void load_7(const void* from, long stride) {
  asm volatile("tileloaddt1 (%0,%1), %%tmm7" ::"r"(from), "r"(stride) : "memory");
}
/// tmm3 += tmm4 * tmm7
void multiply() { asm volatile("tdpbf16ps %tmm7, %tmm4, %tmm3"); }
/// tdpbf16ps %tmm3, %tmm4, %tmm3, which assemblers refuse.
void multiply_with_itself() { asm volatile(".byte 0xc4, 0xe2, 0x62, 0x5c, 0xdc"); }

/// Loads to tmm3 through an address of a certain form, which the text makes of %0 and %1.
#define LOAD_BY(text)                                                                      \
  [](const char* from, long stride) {                                                      \
    asm volatile(text ", %%tmm3" ::"r"(from), "r"(stride)                                  \
                 : "memory", "rax", "rbx", "rbp", "r8", "r9", "r12", "r13", "r14", "r15"); \
  }

/// Each register as base and as index that ModRM or SIB treat in a way of its own (4, 5, 12, 13),
/// every scale, both sizes of displacement.
void check_addresses() {
  using Load = void (*)(const char* from, long stride);
  const struct {
    const char* name;
    Load load;
  } kForms[] = {
      {"(rax,rbx)", LOAD_BY("mov %0,%%r8; mov %1,%%rbx; mov %%r8,%%rax; tileloadd (%%rax,%%rbx)")},
      {"64(r12,r13)", LOAD_BY("lea -64(%0),%%r8; mov %1,%%r13; mov %%r8,%%r12;"
                              "tileloadd 64(%%r12,%%r13)")},
      {"(r13,r12,8)", LOAD_BY("mov %0,%%r8; mov %1,%%r12; mov %%r8,%%r13; sar $3,%%r12;"
                              "tileloadd (%%r13,%%r12,8)")},
      {"4096(r8,r14,2)", LOAD_BY("lea -4096(%0),%%r9; mov %1,%%r14; mov %%r9,%%r8; sar $1,%%r14;"
                                 "tileloadd 4096(%%r8,%%r14,2)")},
      {"-128(r15,rbp,4)", LOAD_BY("lea 128(%0),%%r8; mov %1,%%rbp; mov %%r8,%%r15; sar $2,%%rbp;"
                                  "tileloadd -128(%%r15,%%rbp,4)")},
      {"(rbp,r9)", LOAD_BY("mov %0,%%r8; mov %1,%%r9; mov %%r8,%%rbp; tileloadd (%%rbp,%%r9)")},
  };
  std::vector<char> memory(1 << 14), expected(1024), found(1024);
  for (char& byte : memory) byte = static_cast<char>(g_random());
  for (const auto& form : kForms) {
    for (long stride : {64L, 72L, 200L, -64L, 8L}) {
      const char* from = memory.data() + 8192;
      for (int row = 0; row < 16; ++row) {
        memcpy(expected.data() + row * 64, from + row * stride, 64);
      }
      configure({});
      form.load(from, stride);
      store_3(found.data(), 64);
      release();
      check(found == expected, std::string("tileloadd ") + form.name);
    }
  }
  static const Configuration kStatic = {};  // addressed from the instruction
  asm volatile("ldtilecfg %0" ::"m"(kStatic));
  asm volatile("tileloadd (%0), %%tmm3" ::"r"(memory.data()) : "memory");  // no index: no stride
  asm volatile("tilestored %%tmm3, (%0,%1,4)" ::"r"(found.data()), "r"(16L) : "memory");
  release();
  for (int row = 0; row < 16; ++row) {
    check(memcmp(found.data() + row * 64, memory.data(), 64) == 0, "tileloadd without an index");
  }
}

float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
float widen(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

/// Numbers of all magnitudes, so that products and sums reach zero and infinity and denormals.
uint16_t any_bfloat16() {
  const uint32_t spread = g_random() % 4;
  const uint32_t exponent = spread == 0 ? g_random() % 255 : 127 - 16 + g_random() % 32;
  return static_cast<uint16_t>(g_random() % 2 << 15 | exponent << 7 | g_random() % 128);
}

void check_product(int m, int k, int n) {
  std::vector<uint16_t> a(m * 2 * k), b(k * 2 * n);
  std::vector<float> c(m * n), found(m * n), expected(m * n);
  for (uint16_t& x : a) x = any_bfloat16();
  for (uint16_t& x : b) x = any_bfloat16();
  for (float& x : c) x = widen(any_bfloat16());
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      float sums[2] = {};
      for (int i = 0; i < 2 * k; ++i) {
        const float x = flush(widen(a[row * 2 * k + i]));
        const float y = flush(widen(b[i / 2 * 2 * n + 2 * column + i % 2]));
        sums[i % 2] = flush(fmaf(x, y, sums[i % 2]));
      }
      const float sum = flush(sums[0] + sums[1]);
      expected[row * n + column] = flush(flush(c[row * n + column]) + sum);
    }
  }
  Configuration shapes;
  const auto shape = [&](int tile, int rows, int bytes) {
    shapes.rows[tile] = static_cast<uint8_t>(rows);
    shapes.bytes[tile] = static_cast<uint16_t>(bytes);
  };
  shape(3, m, 4 * n);
  shape(4, m, 4 * k);
  shape(7, k, 4 * n);
  configure(shapes);
  load_3(c.data(), 4 * n);
  load_4(a.data(), 4 * k);
  load_7(b.data(), 4 * n);
  multiply();
  store_3(found.data(), 4 * n);
  release();
  bool same = true;
  for (int i = 0; i < m * n; ++i) {
    same &= memcmp(&found[i], &expected[i], 4) == 0 || (isnan(found[i]) && isnan(expected[i]));
  }
  check(same, "a product of " + std::to_string(m) + " x " + std::to_string(2 * k) + " x " +
                  std::to_string(n));
}

// --- what a child process does

struct Ending {
  bool well;
  std::string said;  // on stderr
};

Ending in_child(const std::function<bool()>& run) {
  int ends[2];
  if (pipe(ends) != 0) abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const bool well = run();
    _exit(well ? 0 : 1);
  }
  close(ends[1]);
  Ending ending;
  char text[512];
  for (ssize_t size; (size = read(ends[0], text, sizeof text)) > 0;) ending.said.append(text, size);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  ending.well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return ending;
}

template <class Change>
std::function<void()> configuring(Change change) {
  return [change] {
    Configuration c;
    change(c);
    configure(c);
  };
}

template <class Change>
std::function<void()> multiplying(Change change) {
  return [change] {
    configuring(change)();
    multiply();
  };
}

void check_rules() {
  using C = Configuration;
  static char memory[1024];
  const struct {
    const char* rule;
    std::function<void()> breach;
  } kRules[] = {
      {"palettes 0 and 1", configuring([](C& c) { c.palette = 2; })},
      {"restarting", configuring([](C& c) { c.start_row = 1; })},
      {"reserved bytes", configuring([](C& c) { c.reserved[13] = 1; })},
      {"eight tiles", configuring([](C& c) { c.rows[8] = 1, c.bytes[8] = 4; })},
      {"at most 16 rows", configuring([](C& c) { c.rows[7] = 17; })},
      {"at most 64 bytes", configuring([](C& c) { c.bytes[0] = 65; })},
      {"both rows and bytes", configuring([](C& c) { c.rows[5] = 0; })},
      {"no tiles are configured", [] { zero_3(); }},
      {"no tiles are configured", [] { configure({}), release(), load_3(memory, 64); }},
      {"no tiles are configured",
       [] { configuring([](C& c) { c = {}, c.palette = 0; })(), store_3(memory, 64); }},
      {"tile is not in use", multiplying([](C& c) { c.rows[4] = c.bytes[4] = 0; })},
      {"multiple of four", multiplying([](C& c) { c.bytes[3] = c.bytes[7] = 62; })},
      {"different numbers of rows", multiplying([](C& c) { c.rows[4] = 15; })},
      {"rows of different lengths", multiplying([](C& c) { c.bytes[3] = 32; })},
      {"each pair", multiplying([](C& c) { c.rows[7] = 15; })},
      {"different ones", [] { configure({}), multiply_with_itself(); }},
      {"a thread ended", [] { std::thread([] { configure({}); }).join(); }},
  };
  for (const auto& row : kRules) {
    const Ending ending = in_child([&] {
      row.breach();
      return true;
    });
    check(!ending.well && ending.said.find(row.rule) != std::string::npos,
          std::string("not refused: ") + row.rule + ", but " + ending.said);
  }
}

// --- the kernel's way to ask for AMX

const Kernels& named(const char* name) {
  const Kernels* const* k = kAllKernels;
  while (*k != nullptr && strcmp((*k)->name, name) != 0) ++k;
  return **k;
}

void check_detection() {
  using A = amx_emulator::Answers;
  const struct {
    const char* name;
    void (*change)(A&);
    bool available;
  } kMachines[] = {
      {"all of it", [](A&) {}, true},
      {"no system that saves states", [](A& a) { a.os_saves_states = false; }, false},
      {"no tiles", [](A& a) { a.tiles = false; }, false},
      {"tiles without bfloat16", [](A& a) { a.bfloat16 = false; }, false},
      {"no tile states", [](A& a) { a.saved_states = 0xe7; }, false},
      {"tile data without configuration", [](A& a) { a.saved_states = 0x400e7; }, false},
      {"permission denied", [](A& a) { a.request = -1; }, false},
      {"permission not given", [](A& a) { a.permitted = false; }, false},
  };
  for (const auto& machine : kMachines) {
    const Ending ending = in_child([&] {
      machine.change(amx_emulator::answers);
      return named("amx").available() == machine.available;
    });
    check(ending.well, std::string("a machine with ") + machine.name + ": " + ending.said);
  }
}

// --- products

/// A product whose operands are allocations of exactly their size.
struct Product {
  Gemm gemm = {};
  std::unique_ptr<float[]> a, w, bias, c, packed;

  /// Bfloat16's depth is even.
  Product(ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t columns, Precision precision, bool panels)
      : a(new float[rows * depth]), bias(new float[columns]) {
    std::normal_distribution<float> normal;
    for (ptrdiff_t i = 0; i < rows * depth; ++i) a[i] = normal(g_random);
    for (ptrdiff_t i = 0; i < columns; ++i) bias[i] = normal(g_random);
    gemm.w_is_paired = precision == Precision::kBf16;
    gemm.w_row = kPanel;
    gemm.w_panel = (gemm.w_is_paired ? depth / 2 : depth) * kPanel;
    const ptrdiff_t words = panels_of(columns) * gemm.w_panel;
    w.reset(new float[words]);
    for (ptrdiff_t i = 0; i < words; ++i) {
      w[i] = normal(g_random);
      const float second = normal(g_random);
      if (gemm.w_is_paired) memcpy(&w[i], reinterpret_cast<const char*>(&second) + 2, 2);
    }
    gemm.w = w.get();
    gemm.a = a.get();
    gemm.a_row = gemm.depth = depth;
    if (g_random() % 2) gemm.bias = bias.get();
    gemm.rows = gemm.packed_rows = rows;
    gemm.columns = columns;
    gemm.precision = precision;
    gemm.c_row = panels ? kPanel : columns;
    gemm.c_panel = panels ? rows * kPanel : kPanel;
    c.reset(new float[size()]);
    gemm.c = c.get();
  }
  ptrdiff_t size() const {
    return gemm.rows * (gemm.c_row == kPanel ? round_to_panel(gemm.columns) : gemm.columns);
  }
  void pack(const Kernels& kernels) {
    packed.reset(new float[kernels.packed_floats(gemm) + 16]);
    const uintptr_t at = reinterpret_cast<uintptr_t>(packed.get());
    float* aligned = reinterpret_cast<float*>((at + 63) / 64 * 64);
    gemm.packed = kernels.packed_floats(gemm) > 0 ? aligned : nullptr;
    for (ptrdiff_t row = 0; gemm.packed && row < gemm.rows; row += kPackRows) {
      kernels.pack(gemm, aligned, row);
    }
  }
  std::vector<float> run(const Kernels& kernels) {
    std::fill_n(c.get(), size(), -5.0f);
    pack(kernels);
    kernels.gemm(gemm);
    return {c.get(), c.get() + size()};
  }
  /// The same by pieces of 64 rows and of three panels, in threads of their own.
  std::vector<float> run_in_pieces(const Kernels& kernels) {
    std::fill_n(c.get(), size(), -5.0f);
    pack(kernels);
    std::vector<std::thread> threads;
    constexpr ptrdiff_t kPanels = 3;
    for (ptrdiff_t row = 0; row < gemm.rows; row += kPackRows) {
      for (ptrdiff_t panel = 0; panel * kPanel < gemm.columns; panel += kPanels) {
        threads.emplace_back(
            [=, &kernels] { kernels.gemm(slice_of(row, kPackRows, panel, kPanels)); });
      }
      for (std::thread& thread : threads) thread.join();
      threads.clear();
    }
    return {c.get(), c.get() + size()};
  }
  Gemm slice_of(ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t panels) const {
    Gemm part = gemm;
    part.a += row * part.a_row;
    part.first_row = row;
    part.w += panel * part.w_panel;
    if (part.bias) part.bias += panel * kPanel;
    part.c += row * part.c_row + panel * part.c_panel;
    part.rows = std::min(rows, gemm.rows - row);
    part.columns = std::min(panels * kPanel, gemm.columns - panel * kPanel);
    return part;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
}

ptrdiff_t any_of(std::initializer_list<ptrdiff_t> values) {
  return values.begin()[g_random() % values.size()];
}

/// The stand-in differs only in what it does with denormals, of which there are none here.
void check_products() {
  const Kernels &unit = named("amx"), &stand_in = named("amx_standin");
  check(unit.available(), "AMX is available");
  const char* const kNames[] = {"fp32", "bf16x3", "bf16"};
  for (int sample = 0; sample < 240; ++sample) {
    const ptrdiff_t rows = any_of({7, 8, 11, 12, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 130});
    const int precision = sample % 3;
    const bool paired = static_cast<Precision>(precision) == Precision::kBf16;
    const ptrdiff_t depth = paired ? any_of({2, 30, 32, 34, 62, 64, 66, 98, 130, 300})
                                   : any_of({1, 31, 32, 33, 63, 64, 65, 97, 129, 300});
    const ptrdiff_t columns = sample % 40 == 0 ? 1100 : any_of({1, 15, 16, 17, 33, 64, 65, 80, 97});
    Product product(rows, depth, columns, static_cast<Precision>(precision), sample / 3 % 2 == 0);
    if (sample % 7 == 0) product.a[g_random() % (rows * depth)] = INFINITY;
    if (sample % 11 == 0 && !paired) product.w[g_random() % (depth * kPanel)] = -INFINITY;
    const std::string what = std::string(kNames[precision]) + ", " + std::to_string(rows) + " x " +
                             std::to_string(depth) + " x " + std::to_string(columns);
    const std::vector<float> whole = product.run(unit);
    check(same_bits(whole, product.run(stand_in)), "unlike the stand-in: " + what);
    check(same_bits(whole, product.run_in_pieces(unit)), "unlike its pieces: " + what);
  }
}

/// A row does not depend on how many others there are, as soon as there are enough for the unit.
void check_rows() {
  const Kernels& unit = named("amx");
  for (Precision precision : {Precision::kFp32, Precision::kBf16x3, Precision::kBf16}) {
    Product product(100, 200, 80, precision, false);
    const std::vector<float> all = product.run(unit);
    for (ptrdiff_t rows : {12, 16, 17, 32, 33, 48, 63, 64, 65, 99}) {
      product.gemm.rows = product.gemm.packed_rows = rows;
      const std::vector<float> some = product.run(unit);
      check(same_bits(some, {all.begin(), all.begin() + rows * 80}),
            "a row depends on others: " + std::to_string(rows));
    }
  }
}

/// The root of the mean square of a product's errors against float64, relative to the result's.
double error_of(const Kernels& kernels, Product* product) {
  const std::vector<float> found = product->run(kernels);
  const Gemm& g = product->gemm;
  double errors = 0, results = 0;
  for (ptrdiff_t row = 0; row < g.rows; ++row) {
    for (ptrdiff_t column = 0; column < g.columns; ++column) {
      const float* w = product->w.get() + column / kPanel * g.w_panel + column % kPanel;
      double exact = g.bias ? g.bias[column] : 0;
      for (ptrdiff_t k = 0; k < g.depth; ++k) {
        exact += static_cast<double>(g.a[row * g.a_row + k]) * w[k * kPanel];
      }
      const double error = found[row * g.c_row + column] - exact;
      errors += error * error;
      results += exact * exact;
    }
  }
  return sqrt(errors / results);
}

void check_errors() {
  Product exact(40, 600, 64, Precision::kFp32, false),
      coarse(40, 600, 64, Precision::kBf16x3, false);
  const double error = error_of(named("amx"), &exact);
  check(error <= error_of(named("avx512"), &exact),
        "fp32 errs by " + std::to_string(error * 1e7) + "e-7");
  const double other = error_of(named("amx"), &coarse);
  check(other < 6e-6, "bf16x3 errs by " + std::to_string(other * 1e6) + "e-6");
}

/// Permission and tiles in a child: it inherits the one and not the other.
void check_fork() {
  const Kernels& unit = named("amx");
  Product product(40, 70, 50, Precision::kFp32, false);
  const std::vector<float> here = product.run(unit);
  const Ending ending = in_child([&] { return same_bits(product.run(unit), here); });
  check(ending.well, "a child computes something else: " + ending.said);
}

}  // namespace

int main() {
  if (amx_emulator::emulates()) {
    check_detection();
    amx_emulator::install();
    check_rules();
  } else {
    printf("this machine has AMX: its own unit runs\n");
    check(named("amx").available(), "AMX is available");
  }
  check_addresses();
  for (int i = 0; i < 200; ++i) {
    check_product(1 + g_random() % 16, 1 + g_random() % 16, 1 + g_random() % 16);
  }
  for (int i = 0; i < 20; ++i) check_product(16, 16, 16);
  check_products();
  check_rows();
  check_errors();
  check_fork();
  const amx_emulator::Counts n = amx_emulator::counts();
  check(n.configure == n.release, "a thread keeps its tiles");
  check((n.multiply > 0) == amx_emulator::emulates(), "instructions are emulated");
  printf(
      "in software: %ld ldtilecfg, %ld tilerelease, %ld tilezero, %ld tileloadd, %ld tilestored, "
      "%ld tdpbf16ps\n",
      n.configure, n.release, n.zero, n.load, n.store, n.multiply);
  if (g_failures == 0) printf("all right\n");
  return g_failures == 0 ? 0 : 1;
}
