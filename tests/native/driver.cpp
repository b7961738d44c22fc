// Runs blocks of random sizes and features without onnxruntime, for the sanitizers and for gdb:
//
//   cmake -S onnx_fuse/native -B build -DONNX_FUSE_DRIVER=ON -DONNX_FUSE_SANITIZE=address,undefined
//   cmake --build build && ctest --test-dir build --output-on-failure
//
// Every operand is an allocation of exactly its size, so that AddressSanitizer sees a read or write
// one element too far; outputs and scratch have canaries around them, for builds without it. All
// instruction sets of the machine must agree on the result, and threads must not change it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "run.h"
#include "workers.h"

using namespace onnx_fuse;

namespace {

constexpr unsigned kSeed = 20;
constexpr size_t kCanaries = 64;
constexpr float kCanary = -12345.5f;

std::mt19937 g_random(kSeed);
int g_shared = 0;      // runs in which several workers took part
int g_hand_overs = 0;  // of the latest run

int64_t any_of(std::initializer_list<int64_t> values) {
  return values.begin()[g_random() % values.size()];
}
bool maybe() { return g_random() % 2 == 0; }
int64_t awkward() { return any_of({1, 2, 15, 16, 17, 31, 33, 48}); }

/// Floats with canaries on both sides.
struct Guarded {
  std::vector<float> all;
  explicit Guarded(size_t count) : all(count + 2 * kCanaries, kCanary) {
    for (size_t i = 0; i < count; ++i) all[kCanaries + i] = NAN;
  }
  float* data() { return all.data() + kCanaries; }
  size_t size() const { return all.size() - 2 * kCanaries; }
  bool intact() const {
    for (size_t i = 0; i < kCanaries; ++i) {
      if (all[i] != kCanary || all[all.size() - 1 - i] != kCanary) return false;
    }
    return true;
  }
};

/// A block with operands that own exactly their memory.
struct Sample {
  Signature signature = {};
  Extents extents = {};
  Tensor tensors[kOperandCount] = {};
  std::vector<std::unique_ptr<char[]>> memory;
  std::string operands;
  bool has_weights = false;

  void give(Operand o, std::vector<int64_t> dims, ElementType type = kFloat32) {
    Tensor& t = tensors[o];
    t.type = type;
    t.rank = static_cast<int>(dims.size());
    size_t count = 1;
    for (size_t i = 0; i < dims.size(); ++i) {
      t.dims[i] = dims[i];
      count *= static_cast<size_t>(dims[i]);
    }
    const size_t size = type == kInt64                       ? 8
                        : type == kFloat32 || type == kInt32 ? 4
                        : type == kBfloat16                  ? 2
                                                             : 1;
    memory.emplace_back(new char[count * size]);
    t.data = memory.back().get();
    std::normal_distribution<float> normal(0, 0.3f);
    for (size_t i = 0; i < count; ++i) {
      const float x = normal(g_random);
      uint32_t bits;
      memcpy(&bits, &x, sizeof bits);
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      const uint8_t flag = x > -0.2f;
      const void* from = size == 4   ? static_cast<const void*>(&x)
                         : size == 2 ? static_cast<const void*>(&upper)
                                     : static_cast<const void*>(&flag);
      if (size <= 4) memcpy(memory.back().get() + i * size, from, size);
    }
    operands += (operands.empty() ? "" : ",") + std::string(operand_name(o));
  }
  template <class Integer>
  void give_integers(Operand o, std::vector<int64_t> dims, const std::vector<Integer>& content) {
    give(o, std::move(dims), sizeof(Integer) == 8 ? kInt64 : kInt32);
    memcpy(memory.back().get(), content.data(), content.size() * sizeof content[0]);
  }
  /// Bfloat16 if it may be, and has rows for pairs.
  void give_weight(Operand o, int64_t rows, int64_t columns, bool may_be_bfloat16) {
    if (may_be_bfloat16 && rows % 2 == 0) {
      give(o, {panels_of(columns), rows / 2, kPanel, 2}, kBfloat16);
    } else {
      give(o, {panels_of(columns), rows, kPanel});
    }
  }
};

/// A cache in a buffer of its own, with a length for each batch; it excludes masks of conditions.
void fill_buffer(Sample* sample) {
  Attributes& a = sample->signature.attributes;
  a.kv_num_heads = any_of({1, 2, 3});
  a.num_heads = a.kv_num_heads * any_of({1, 2});
  a.head_dim = awkward() + 1;
  a.v_head_dim = maybe() ? a.head_dim : awkward();
  a.scale = 0.25f;
  a.is_causal = maybe();
  a.window_size = a.is_causal ? any_of({0, 1, 5, 40, 300}) : 0;
  a.softcap = maybe() ? 2.0f : 0.0f;
  a.interleaved = maybe();
  a.rotary_embedding_dim = maybe() ? a.head_dim / 2 * 2 : 0;
  const int64_t batch = any_of({1, 2}), q_seq = awkward(), hidden = awkward();
  const int64_t columns = a.num_heads * a.head_dim + a.kv_num_heads * (a.head_dim + a.v_head_dim);
  const bool prompt = maybe();
  const int64_t past = any_of({awkward(), 300}), total = prompt ? q_seq : past + q_seq;
  // Of the latest positions: a window and some, whatever the sequence's length is.
  a.window_cache = a.window_size > 0 && maybe();
  const int64_t buffer = a.window_cache ? a.window_size + any_of({0, 1, 7})
                         : maybe()      ? past
                                        : total + 5;
  if (maybe()) {
    sample->give(kQkv, {batch, q_seq, columns});
  } else {
    sample->give(kHidden, {batch, q_seq, hidden});
    sample->give_weight(kQkvWeight, hidden, columns, false);
  }
  if (a.rotary_embedding_dim > 0) {
    sample->give(kCosCache, {total, a.rotary_embedding_dim / 2});
    sample->give(kSinCache, {total, a.rotary_embedding_dim / 2});
    std::vector<int64_t> ids(static_cast<size_t>(batch * q_seq));
    for (int64_t& id : ids) id = any_of({0, total - 1});
    ids[0] = prompt ? 0 : ids[0];  // a first prompt's count on from it
    if (maybe()) sample->give_integers(kPositionIds, {batch, q_seq}, ids);
  }
  sample->give(kPastKey, {batch, a.kv_num_heads, buffer, a.head_dim});
  sample->give(kPastValue, {batch, a.kv_num_heads, buffer, a.v_head_dim});
  std::vector<int32_t> lengths;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t least = prompt && !a.window_cache ? 1 : q_seq;
    lengths.push_back(static_cast<int32_t>(i == 0 ? total - 1 : (least + total) / 2 - 1));
  }
  sample->give_integers(kSeqlensK, {batch}, lengths);
  sample->give_integers<int32_t>(kTotalSequenceLength, {1}, {static_cast<int32_t>(total)});
  if (maybe()) sample->give(kAttnBias, {batch, maybe() ? a.num_heads : 1, q_seq, total});
  if (maybe()) sample->give(kSinks, {a.num_heads});
}

/// Random norms and rotations of queries and keys.
void fill_heads(Sample* sample, int64_t batch, int64_t q_seq, int64_t kv_seq) {
  Attributes& a = sample->signature.attributes;
  a.q_norm = static_cast<NormKind>(any_of({0, 1, 2, 3}));
  a.k_norm = static_cast<NormKind>(any_of({0, 1, 2, 3}));
  a.q_norm_over_heads = maybe();
  a.k_norm_over_heads = maybe();
  a.q_norm_epsilon = a.k_norm_epsilon = 1e-5f;
  if (a.q_norm != NormKind::kNone) sample->give(kQNormWeight, {a.num_heads, a.head_dim});
  if (a.q_norm == NormKind::kLayer) sample->give(kQNormBias, {a.num_heads, a.head_dim});
  if (a.k_norm != NormKind::kNone) sample->give(kKNormWeight, {a.kv_num_heads, a.head_dim});
  if (a.head_dim == 1 || maybe()) return;
  const int64_t dims = a.rotary_embedding_dim = a.head_dim / 2 * 2;
  sample->give(kQCos, {batch, 1, q_seq, dims});
  sample->give(kQSin, {1, a.num_heads, q_seq, dims});
  sample->give(kKCos, {1, 1, kv_seq, dims});
  sample->give(kKSin, {1, 1, 1, dims});
}

/// Random sizes and features; every other operand of the table occurs in some sample.
void fill(Sample* sample) {
  Attributes& a = sample->signature.attributes;
  a.kv_num_heads = any_of({1, 2, 3, 5});
  a.num_heads = a.kv_num_heads * any_of({1, 1, 2, 2, 13});
  a.head_dim = awkward() + (maybe() ? 1 : 0);
  a.v_head_dim = maybe() ? a.head_dim : awkward();
  a.scale = 0.25f;
  a.softcap = maybe() ? 2.0f : 0.0f;
  a.is_causal = maybe();
  a.zero_nan = any_of({0, 1, 2});
  a.interleaved = maybe();
  const int64_t batch = any_of({1, 2}), q_seq = awkward(),
                hidden = any_of({awkward(), awkward(), awkward(), 130});
  const bool joint = maybe(), bfloat16 = maybe(), cross = !joint && maybe();
  a.precision = !maybe() ? Precision::kFp32 : bfloat16 ? Precision::kBf16 : Precision::kBf16x3;
  const int64_t kv_seq = cross ? any_of({1, 16, 300}) : q_seq;
  const int64_t past = any_of({0, 0, awkward(), 300, 700});
  const int64_t q = a.num_heads * a.head_dim, k = a.kv_num_heads * a.head_dim;
  const int64_t v = a.kv_num_heads * a.v_head_dim, total = past + kv_seq, context = hidden + 3;
  const bool values = cross && maybe();

  sample->give(kHidden, {batch, q_seq, hidden});
  if (cross && !values) sample->give(kContext, {batch, kv_seq, context});
  if (values) sample->give(kKey, {batch, a.kv_num_heads, kv_seq, a.head_dim});
  if (values) sample->give(kValue, {batch, a.kv_num_heads, kv_seq, a.v_head_dim});
  if (joint) {
    sample->give_weight(kQkvWeight, hidden, q + k + v, bfloat16);
    sample->give(kQkvBias, {q + k + v});
  } else {
    sample->give_weight(kQWeight, hidden, q, bfloat16);
    if (!values) sample->give_weight(kKWeight, cross ? context : hidden, k, bfloat16);
    if (!values) sample->give_weight(kVWeight, cross ? context : hidden, v, bfloat16);
    sample->give(kQBias, {q});
  }
  fill_heads(sample, batch, q_seq, kv_seq);
  if (past > 0) {
    sample->give(kPastKey, {batch, a.kv_num_heads, past, a.head_dim});
    sample->give(kPastValue, {batch, a.kv_num_heads, past, a.v_head_dim});
  }
  if (maybe()) sample->give(kAttnBias, {batch, 1, q_seq, total});
  if (maybe()) {
    sample->give(kAttnMask, {a.num_heads, q_seq, total}, kBool);
    sample->give(kMaskFill, {total});
  }
  if (maybe()) sample->give(kSinks, {a.num_heads});
  sample->has_weights = maybe();
  if (maybe()) {
    a.out_size = awkward();
    if (maybe()) {
      const int64_t lanes = maybe() ? a.v_head_dim : 1;
      sample->give(kGate, {batch, maybe() ? q_seq : 1, maybe() ? a.num_heads : 1, lanes});
    }
    sample->give_weight(kOutWeight, a.num_heads * a.v_head_dim, a.out_size, bfloat16);
    sample->give(kOutBias, {a.out_size});
  }
}

void run_serially(void*, void (*fn)(void*, size_t), size_t count, void* user) {
  for (size_t i = 0; i < count; ++i) fn(user, i);
}

/// All begin at once.
void run_in_threads(void*, void (*fn)(void*, size_t), size_t count, void* user) {
  ++g_hand_overs;
  std::vector<std::thread> threads;
  std::atomic<size_t> missing{count};
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back([&missing, fn, user, i] {
      missing.fetch_sub(1);
      while (missing.load() > 0) std::this_thread::yield();
      fn(user, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// The last worker comes first, and the others when it has gone.
void run_backwards(void*, void (*fn)(void*, size_t), size_t count, void* user) {
  while (count > 0) fn(user, --count);
}

using RunInPool = decltype(Pool::run);

/// The output, or nothing if a canary died or the work was handed over more than once.
std::vector<float> run(const Sample& s, const Kernels& kernels, size_t workers, RunInPool in_pool) {
  const Attributes& a = s.signature.attributes;
  const size_t batch = static_cast<size_t>(s.extents[kBatch]);
  const size_t kv = batch * static_cast<size_t>(a.kv_num_heads * s.extents.total_seq());
  const int64_t width = a.out_size > 0 ? a.out_size : a.num_heads * a.v_head_dim;
  Guarded output(batch * static_cast<size_t>(s.extents[kQSeq] * width));
  Guarded key(kv * static_cast<size_t>(a.head_dim)), value(kv * static_cast<size_t>(a.v_head_dim));
  const size_t scores = batch * static_cast<size_t>(a.num_heads * s.extents[kQSeq]);
  Guarded weights(scores * static_cast<size_t>(s.extents.total_seq()));
  float* shown = s.has_weights ? weights.data() : nullptr;
  const Outputs outputs = {output.data(), key.data(), value.data(), shown};
  const Plan plan(s.signature, kernels, s.extents, s.tensors, outputs, workers);
  size_t bytes = 0;
  if (!plan.scratch_bytes(&bytes)) return {};
  std::vector<float> memory(bytes / sizeof(float) + 16 + 2 * kCanaries, kCanary);
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory.data() + kCanaries);
  float* scratch = reinterpret_cast<float*>((start + 63) / 64 * 64);
  g_hand_overs = 0;
  if (run_plan(plan, scratch, {nullptr, in_pool}) > 1) ++g_shared;
  if (g_hand_overs > 1) return {};
  for (size_t i = 0; i < kCanaries; ++i) {
    if (scratch[bytes / sizeof(float) + i] != kCanary || memory[i] != kCanary) return {};
  }
  std::vector<float> all;
  for (Guarded* each : {&output, &key, &value, &weights}) {
    if (!each->intact()) return {};
    all.insert(all.end(), each->data(), each->data() + each->size());
  }
  return all;
}

/// Instruction sets differ in how sums are rounded: by a few eps of sums of up to 400 terms
/// below 10; where factors may be rounded, some round them and some do not.
float tolerance_of(const Attributes& a) {
  constexpr float kTolerances[] = {1e-4f, 1e-3f, 0.2f};
  return kTolerances[static_cast<int>(a.precision)];
}

bool agree(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  if (a.empty() || a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = a[i] != a[i] && b[i] != b[i];
    if (!both_nan && !(a[i] == b[i]) && !(fabsf(a[i] - b[i]) <= tolerance)) return false;
  }
  return true;
}

bool check(int number) {
  Sample s;
  if (number % 4 == 3) {
    fill_buffer(&s);
  } else {
    fill(&s);
  }
  Message message;
  if (!parse_operands(s.operands.c_str(), &s.signature, &message) ||
      !check_signature(s.signature, &message) ||
      !check_tensors(s.signature, s.tensors, &s.extents, &message) ||
      !check_lengths(s.signature, s.tensors, &s.extents, &message)) {
    printf("sample %d: %s\n", number, message.text);
    return false;
  }
  std::vector<float> expected;
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    if (!(*k)->available()) continue;
    const std::vector<float> alone = run(s, **k, 1, run_serially);
    if (expected.empty()) expected = alone;
    if (!agree(alone, run(s, **k, 3, run_in_threads), 0.0f) ||
        !agree(alone, run(s, **k, 3, run_backwards), 0.0f) ||
        !agree(alone, expected, tolerance_of(s.signature.attributes))) {
      printf("sample %d: %s is wrong: %s\n", number, (*k)->name, s.operands.c_str());
      return false;
    }
  }
  return true;
}

/// What a node learns of its session's threads.
bool check_workers() {
  constexpr unsigned kEnough = Workers::kEnough;
  const struct {
    const char* what;
    unsigned calls;
    size_t seen;
    size_t expected;
  } rows[] = {
      {"at first", 0, 0, 8},
      {"after calls that weren't worth sharing", 1000, 0, 8},
      {"after too few to tell", kEnough - 1, 2, 8},
      {"every 64th", kEnough, 2, 8},
      {"with two threads", kEnough + 1, 2, 2},
      {"with one thread", kEnough + 1, 1, 1},
      {"every 64th, later", 3 * kEnough, 1, 8},
  };
  bool good = true;
  for (const auto& row : rows) {
    Workers workers(8);
    for (unsigned i = 0; i < row.calls; ++i) workers.observe(row.seen);
    if (workers.count() == row.expected) continue;
    printf("%s: %zu workers, not %zu\n", row.what, workers.count(), row.expected);
    good = false;
  }
  Workers late(8);
  for (unsigned i = 0; i < kEnough; ++i) late.observe(1);
  late.observe(4);
  if (late.count() != 4) printf("a thread that came late is not counted\n");
  return good && late.count() == 4;
}

/// The part of their time for which workers are busy who take a product's items as they come free.
double busy_share(const Product& p, ptrdiff_t workers) {
  std::vector<double> load(static_cast<size_t>(workers));
  double all = 0;
  for (ptrdiff_t i = 0; i < p.items(); ++i) {
    const Gemm g = p.item(i);
    const double work = static_cast<double>(g.rows) * static_cast<double>(g.columns);
    *std::min_element(load.begin(), load.end()) += work;
    all += work;
  }
  return all / (*std::max_element(load.begin(), load.end()) * static_cast<double>(workers));
}

/// Blocks of 12 heads, with 12 or 2 of K and V, keep 2 to 16 workers busy: three quarters of their
/// time where a tile's four panels are a piece (48 panels leave 4 of 16 workers without).
bool check_pieces() {
  bool good = true;
  for (const int64_t hidden : {384, 768}) {
    for (const int64_t kv_heads : {12, 2}) {
      for (const int64_t rows : {8, 64, 512}) {
        Sample s;
        Attributes& a = s.signature.attributes;
        a.num_heads = 12;
        a.kv_num_heads = kv_heads;
        a.head_dim = a.v_head_dim = hidden / 12;
        a.out_size = hidden;
        const int64_t columns = (12 + 2 * kv_heads) * a.head_dim;
        const auto give = [&](Operand o, int64_t x, int64_t y, int64_t z) {
          s.tensors[o] = {nullptr, kFloat32, 3, {x, y, z}};
        };
        give(kHidden, 1, rows, hidden);
        give(kQkvWeight, panels_of(columns), hidden, kPanel);
        give(kOutWeight, panels_of(hidden), hidden, kPanel);
        Message message;
        if (!parse_operands("hidden,qkv_weight,out_weight", &s.signature, &message) ||
            !check_tensors(s.signature, s.tensors, &s.extents, &message)) {
          printf("%s\n", message.text);
          return false;
        }
        for (const size_t workers : {2, 4, 8, 16}) {
          const Plan plan(s.signature, **kAllKernels, s.extents, s.tensors, {}, workers);
          for (const Product* p : {&plan.products[0], &plan.merge}) {
            const double share = busy_share(*p, static_cast<ptrdiff_t>(workers));
            if (share >= 0.74) continue;
            printf("hidden %d, %d kv heads, %d rows: %d workers are busy for %.2f of their time\n",
                   static_cast<int>(hidden), static_cast<int>(kv_heads), static_cast<int>(rows),
                   static_cast<int>(workers), share);
            good = false;
          }
        }
      }
    }
  }
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  const int samples = count > 1 ? atoi(arguments[1]) : 300;
  if (!check_workers() || !check_pieces()) return 1;
  for (int i = 0; i < samples; ++i) {
    if (!check(i)) return 1;
  }
  if (g_shared < samples / 4) {
    printf("%d runs of %d samples were shared: too few\n", g_shared, samples);
    return 1;
  }
  printf("%d samples agree by", samples);
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    if ((*k)->available()) printf(" %s", (*k)->name);
  }
  printf("\n");
  return 0;
}
