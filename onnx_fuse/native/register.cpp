// The operators of the domain `onnx_fuse` for onnxruntime 1.17 and newer. The only file that knows
// onnxruntime: it turns nodes and tensors into signatures and pointers, and failures into statuses.
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "block.h"
#include "dispatch.h"
#include "operands.h"
#include "ort_abi.h"
#include "shape_inference.h"

namespace onnx_fuse {
namespace {

constexpr size_t kOutputs = 3;

/// Calls whose status ends the caller's work at once.
#define RETURN_IF_FAILED(call)                     \
  do {                                             \
    if (OrtStatus* failed = (call)) return failed; \
  } while (false)

struct Kernel {
  const OrtApi* api;
  bool has_shape_reference;  // slot 414
  char name[128];            // the node's, for messages
  Signature signature;
  const Kernels* kernels;
  OrtMemoryInfo* memory;
  size_t processors;
  // How many threads were seen at work at once, and in how many calls: few tell little.
  mutable std::atomic<size_t> busy{1};
  mutable std::atomic<unsigned> calls{0};

  /// As many as there are processors, or, once that is known, as the session really uses.
  size_t workers() const {
    constexpr unsigned kEnough = 64;
    if (calls.load(std::memory_order_relaxed) < kEnough) return processors;
    return busy.load(std::memory_order_relaxed);
  }
  void observe(size_t seen) const {
    calls.fetch_add(1, std::memory_order_relaxed);
    size_t most = busy.load(std::memory_order_relaxed);
    while (seen > most && !busy.compare_exchange_weak(most, seen, std::memory_order_relaxed)) {
    }
  }
};

OrtStatus* fail(const OrtApi* api, const char* node, const char* text,
                ort::ErrorCode code = ort::kInvalidArgument) {
  char whole[640];
  snprintf(whole, sizeof whole, "onnx_fuse: node '%s': %s", node, text);
  return ort::CreateStatus::call(api, code, whole);
}

/// The dimensions and the type of an OrtTensorTypeAndShapeInfo; more than kMaxRank keep their
/// count.
OrtStatus* read_shape(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, Tensor* t) {
  size_t rank = 0;
  RETURN_IF_FAILED(ort::GetTensorElementType::call(api, info, &t->type));
  RETURN_IF_FAILED(ort::GetDimensionsCount::call(api, info, &rank));
  t->rank = static_cast<int>(rank);
  if (rank <= kMaxRank) RETURN_IF_FAILED(ort::GetDimensions::call(api, info, t->dims, rank));
  return nullptr;
}

// ---- Creation
// ---------------------------------------------------------------------------------------

/// Reads one node's attributes; the first that is missing ends up in `message`.
struct AttributeReader {
  const OrtApi* api;
  const OrtKernelInfo* info;
  Message* message;

  bool done(OrtStatus* status, const char* name) const {
    if (!status) return true;
    ort::ReleaseStatus::call(api, status);
    return message->set("attribute '%s' is missing or of another type", name);
  }
  bool get(const char* name, int64_t* value) const {
    return done(ort::InfoAttributeInt::call(api, info, name, value), name);
  }
  bool get(const char* name, float* value) const {
    return done(ort::InfoAttributeFloat::call(api, info, name, value), name);
  }
  template <size_t kSize>
  bool get(const char* name, char (&value)[kSize]) const {
    size_t size = kSize;
    return done(ort::InfoAttributeString::call(api, info, name, value, &size), name);
  }
};

bool read_attributes(const AttributeReader& reader, Signature* s) {
  Attributes& a = s->attributes;
  const struct {
    const char* name;
    int64_t* value;
  } integers[] = {
      {"num_heads", &a.num_heads},
      {"kv_num_heads", &a.kv_num_heads},
      {"head_dim", &a.head_dim},
      {"v_head_dim", &a.v_head_dim},
      {"out_size", &a.out_size},
      {"is_causal", &a.is_causal},
      {"interleaved", &a.interleaved},
      {"rotary_embedding_dim", &a.rotary_embedding_dim},
      {"q_norm_over_heads", &a.q_norm_over_heads},
      {"k_norm_over_heads", &a.k_norm_over_heads},
      {"zero_nan", &a.zero_nan},
  };
  const struct {
    const char* name;
    float* value;
  } numbers[] = {
      {"scale", &a.scale},
      {"softcap", &a.softcap},
      {"q_norm_epsilon", &a.q_norm_epsilon},
      {"k_norm_epsilon", &a.k_norm_epsilon},
  };
  for (const auto& row : integers) {
    if (!reader.get(row.name, row.value)) return false;
  }
  for (const auto& row : numbers) {
    if (!reader.get(row.name, row.value)) return false;
  }
  Message* m = reader.message;
  char q_norm[64], k_norm[64], precision[64], operands[640];
  return reader.get("q_norm", q_norm) && parse_norm("q_norm", q_norm, &a.q_norm, m) &&
         reader.get("k_norm", k_norm) && parse_norm("k_norm", k_norm, &a.k_norm, m) &&
         reader.get("precision", precision) && parse_precision(precision, &a.precision, m) &&
         reader.get("operands", operands) && parse_operands(operands, s, m);
}

/// Types and shapes as far as the graph tells them.
OrtStatus* read_declared(const OrtApi* api, const OrtKernelInfo* info, const Signature& s,
                         Tensor* tensors) {
  for (int o = 0; o < kOperandCount; ++o) {
    if (s.position[o] < 0) continue;
    OrtTypeInfo* type = nullptr;
    RETURN_IF_FAILED(
        ort::InfoInputTypeInfo::call(api, info, static_cast<size_t>(s.position[o]), &type));
    const OrtTensorTypeAndShapeInfo* shape = nullptr;
    OrtStatus* status = ort::CastTypeInfoToTensorInfo::call(api, type, &shape);
    if (!status && shape) status = read_shape(api, shape, &tensors[o]);
    if (tensors[o].rank == 0)
      tensors[o].rank = kUnknownRank;  // also what an undeclared shape reads as
    ort::ReleaseTypeInfo::call(api, type);
    if (status) return status;
  }
  return nullptr;
}

OrtStatus* set_up(Kernel* kernel, const OrtKernelInfo* info) {
  const OrtApi* api = kernel->api;
  size_t size = sizeof kernel->name;
  if (OrtStatus* status = ort::InfoNodeName::call(api, info, kernel->name, &size)) {
    ort::ReleaseStatus::call(api, status);
    snprintf(kernel->name, sizeof kernel->name, "(name too long)");
  }
  Message message = {};
  Signature& s = kernel->signature;
  if (!read_attributes({api, info, &message}, &s) || !check_signature(s, &message)) {
    return fail(api, kernel->name, message.text);
  }
  size_t inputs = 0, outputs = 0;
  RETURN_IF_FAILED(ort::InfoInputCount::call(api, info, &inputs));
  RETURN_IF_FAILED(ort::InfoOutputCount::call(api, info, &outputs));
  if (inputs != static_cast<size_t>(s.count)) {
    message.set("attribute 'operands' names %d operands, the node has %zu inputs", s.count, inputs);
    return fail(api, kernel->name, message.text);
  }
  if (s.has(kPastKey) && outputs != kOutputs) {
    message.set("with past_key the node needs 3 outputs, it has %zu", outputs);
    return fail(api, kernel->name, message.text);
  }
  Tensor tensors[kOperandCount] = {};
  RETURN_IF_FAILED(read_declared(api, info, s, tensors));
  Extents extents;
  if (!check_tensors(s, tensors, &extents, &message)) return fail(api, kernel->name, message.text);

  const char* requested = nullptr;
  kernel->kernels = select_kernels(&requested);
  if (!kernel->kernels) {
    message.set("ONNX_FUSE_ISA is '%.40s', which is unknown or not available on this machine",
                requested);
    return fail(api, kernel->name, message.text);
  }
  constexpr int kArena = 1, kDefault = 0;
  return ort::CreateCpuMemoryInfo::call(api, kArena, kDefault, &kernel->memory);
}

void destroy(void* self) {
  Kernel* kernel = static_cast<Kernel*>(self);
  if (kernel->memory) ort::ReleaseMemoryInfo::call(kernel->api, kernel->memory);
  kernel->~Kernel();
  free(kernel);
}

// The newest table that the onnxruntime which registered us has, and whether it has slot 414.
const OrtApi* g_api = nullptr;
bool g_has_shape_reference = false;

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  // Not operator new: libstdc++ would come with it, and with that a newer glibc than onnxruntime's.
  void* memory = malloc(sizeof(Kernel));
  Kernel* kernel = memory ? new (memory) Kernel() : nullptr;
  if (!kernel) return fail(api, "", "out of memory", ort::kFail);
  kernel->api = g_has_shape_reference ? g_api : api;
  kernel->has_shape_reference = g_has_shape_reference;
  const long processors = sysconf(_SC_NPROCESSORS_ONLN);
  kernel->processors = processors > 0 ? static_cast<size_t>(processors) : 1;
  if (OrtStatus* status = set_up(kernel, info)) {
    destroy(kernel);
    return status;
  }
  *out = kernel;
  return nullptr;
}

// ---- Call
// -------------------------------------------------------------------------------------------

OrtStatus* read_tensor(const Kernel& kernel, const OrtValue* value, Tensor* t) {
  const OrtApi* api = kernel.api;
  void* data = nullptr;
  RETURN_IF_FAILED(ort::GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  t->data = data;
  if (kernel.has_shape_reference) {
    const int64_t* dims = nullptr;
    size_t rank = 0;
    RETURN_IF_FAILED(
        ort::GetTensorElementTypeAndShapeDataReference::call(api, value, &t->type, &dims, &rank));
    t->rank = static_cast<int>(rank);
    for (size_t i = 0; i < rank && i < kMaxRank; ++i) t->dims[i] = dims[i];
    return nullptr;
  }
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  RETURN_IF_FAILED(ort::GetTensorTypeAndShape::call(api, value, &shape));
  OrtStatus* status = read_shape(api, shape, t);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, shape);
  return status;
}

OrtStatus* read_inputs(const Kernel& kernel, const OrtKernelContext* context, Tensor* tensors) {
  const Signature& s = kernel.signature;
  for (int o = 0; o < kOperandCount; ++o) {
    if (s.position[o] < 0) continue;
    const OrtValue* value = nullptr;
    RETURN_IF_FAILED(
        ort::ContextInput::call(kernel.api, context, static_cast<size_t>(s.position[o]), &value));
    if (!value) {
      Message message;
      message.set("operand '%s' has no value", operand_name(static_cast<Operand>(o)));
      return fail(kernel.api, kernel.name, message.text);
    }
    RETURN_IF_FAILED(read_tensor(kernel, value, &tensors[o]));
  }
  return nullptr;
}

OrtStatus* get_output(const OrtApi* api, OrtKernelContext* context, size_t index,
                      const int64_t* dims, size_t rank, float** data) {
  OrtValue* value = nullptr;
  RETURN_IF_FAILED(ort::ContextOutput::call(api, context, index, dims, rank, &value));
  void* start = nullptr;
  if (value) RETURN_IF_FAILED(ort::GetTensorMutableData::call(api, value, &start));
  *data = static_cast<float*>(start);
  return nullptr;
}

OrtStatus* get_outputs(const Kernel& kernel, OrtKernelContext* context, const Extents& e,
                       Outputs* outputs) {
  const Attributes& a = kernel.signature.attributes;
  const OrtApi* api = kernel.api;
  const int64_t width = a.out_size > 0 ? a.out_size : a.num_heads * a.v_head_dim;
  const int64_t output[] = {e[kBatch], e[kQSeq], width};
  const int64_t key[] = {e[kBatch], a.kv_num_heads, e.total_seq(), a.head_dim};
  const int64_t value[] = {e[kBatch], a.kv_num_heads, e.total_seq(), a.v_head_dim};
  RETURN_IF_FAILED(get_output(api, context, 0, output, 3, &outputs->output));
  size_t count = 0;
  RETURN_IF_FAILED(ort::ContextOutputCount::call(api, context, &count));
  if (count < kOutputs) return nullptr;
  RETURN_IF_FAILED(get_output(api, context, 1, key, 4, &outputs->present_key));
  return get_output(api, context, 2, value, 4, &outputs->present_value);
}

struct Host {
  const OrtApi* api;
  const OrtKernelContext* context;
};

/// The status can only tell of wrong arguments; the work is then done here.
void run_in_pool(void* self, void (*fn)(void*, size_t), size_t count, void* user) {
  const Host& host = *static_cast<const Host*>(self);
  OrtStatus* status = ort::ContextParallelFor::call(host.api, host.context, fn, count, 0, user);
  if (!status) return;
  ort::ReleaseStatus::call(host.api, status);
  for (size_t i = 0; i < count; ++i) fn(user, i);
}

OrtStatus* run_block(const Kernel& kernel, OrtKernelContext* context, Block* block,
                     const Outputs& outputs) {
  const OrtApi* api = kernel.api;
  size_t bytes = 0;
  if (!block->scratch_bytes(&bytes)) return fail(api, kernel.name, "the shapes are too large");
  OrtAllocator* allocator = nullptr;
  RETURN_IF_FAILED(ort::ContextAllocator::call(api, context, kernel.memory, &allocator));
  constexpr size_t kAlignment = 64;
  void* memory = nullptr;
  OrtStatus* status = ort::AllocatorAlloc::call(api, allocator, bytes + kAlignment, &memory);
  if (!status && !memory) status = fail(api, kernel.name, "out of memory", ort::kFail);
  if (!status) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    void* scratch = reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);
    Host host = {api, context};
    kernel.observe(block->run(outputs, scratch, {&host, run_in_pool}));
    status = ort::AllocatorFree::call(api, allocator, memory);
  }
  ort::ReleaseAllocator::call(api, allocator);
  return status;
}

OrtStatus* compute(void* self, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Tensor tensors[kOperandCount] = {};
  RETURN_IF_FAILED(read_inputs(kernel, context, tensors));
  Extents extents;
  Message message;
  if (!check_tensors(kernel.signature, tensors, &extents, &message)) {
    return fail(kernel.api, kernel.name, message.text);
  }
  if (!check_lengths(kernel.signature, tensors, &extents, &message)) {
    return fail(kernel.api, kernel.name, message.text);
  }
  Outputs outputs = {};
  RETURN_IF_FAILED(get_outputs(kernel, context, extents, &outputs));
  Block block(kernel.signature, *kernel.kernels, extents, tensors, outputs.present_value != nullptr,
              kernel.workers());
  return run_block(kernel, context, &block, outputs);
}

// ---- Operators
// --------------------------------------------------------------------------------------

/// An operator and the API of the onnxruntime that registered it.
struct Operator {
  OrtCustomOp base;
  const char* name;
};

constexpr const char* kOperatorNames[] = {
    "FusedAttentionBlock",        "FusedAttentionBlock_2",      "FusedAttentionBlock_3",
    "FusedAttentionBlock_4",      "FusedAttentionBlock_5",      "FusedAttentionBlock_6",
    "FusedAttentionBlock_7",      "FusedAttentionBlock_8",      "FusedCrossAttentionBlock",
    "FusedCrossAttentionBlock_2", "FusedCrossAttentionBlock_3", "FusedCrossAttentionBlock_4",
    "FusedCrossAttentionBlock_5", "FusedCrossAttentionBlock_6", "FusedCrossAttentionBlock_7",
    "FusedCrossAttentionBlock_8",
};
constexpr size_t kOperatorCount = sizeof kOperatorNames / sizeof *kOperatorNames;

OrtStatus* infer_shapes(const OrtCustomOp*, OrtShapeInferContext* context) {
  infer_output(g_api, context);
  return nullptr;
}

OrtCustomOp block_operator() {
  OrtCustomOp op = {};
  op.version = ort::kApiVersion;
  op.GetName = [](const OrtCustomOp* self) {
    return reinterpret_cast<const Operator*>(self)->name;
  };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputType = [](const OrtCustomOp*, size_t) -> int { return ort::kUndefined; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kVariadic; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return kOutputs; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::kFloat; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
    return index == 0 ? ort::kRequired : ort::kOptional;
  };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy;
  op.InferOutputShapeFn = infer_shapes;
  return op;
}

// `LibraryInfo`, without inputs: what this library would use here, as a line of ASCII (uint8, 1-D):
// the chosen instruction set, a colon, and all that this machine has, separated by commas.

OrtStatus* create_info(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo*, void** out) {
  *out = const_cast<OrtApi*>(api);
  return nullptr;
}

OrtStatus* compute_info(void* self, OrtKernelContext* context) {
  const OrtApi* api = static_cast<const OrtApi*>(self);
  const char* requested = nullptr;
  const Kernels* chosen = select_kernels(&requested);
  char text[256];
  int size = snprintf(text, sizeof text, "%s:", chosen ? chosen->name : "");
  const char* comma = "";
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    if ((*k)->by_name_only || !(*k)->available()) continue;
    size +=
        snprintf(text + size, sizeof text - static_cast<size_t>(size), "%s%s", comma, (*k)->name);
    comma = ",";
  }
  const int64_t dims[] = {size};
  OrtValue* value = nullptr;
  void* data = nullptr;
  RETURN_IF_FAILED(ort::ContextOutput::call(api, context, 0, dims, 1, &value));
  RETURN_IF_FAILED(ort::GetTensorMutableData::call(api, value, &data));
  memcpy(data, text, static_cast<size_t>(size));
  return nullptr;
}

OrtCustomOp info_operator() {
  OrtCustomOp op = block_operator();
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::kUint8; };
  op.CreateKernelV2 = create_info;
  op.KernelComputeV2 = compute_info;
  op.KernelDestroy = [](void*) {};
  op.InferOutputShapeFn = nullptr;
  return op;
}

/// onnxruntime keeps pointers to these as long as a session lives, and does not say how long.
struct Registry {
  Operator operators[kOperatorCount + 1];
  OrtCustomOpDomain* domain;
};
Registry g_registry;

OrtStatus* fill_registry(const OrtApi* api) {
  RETURN_IF_FAILED(ort::CreateCustomOpDomain::call(api, "onnx_fuse", &g_registry.domain));
  for (size_t i = 0; i < kOperatorCount; ++i) {
    g_registry.operators[i] = {block_operator(), kOperatorNames[i]};
  }
  g_registry.operators[kOperatorCount] = {info_operator(), "LibraryInfo"};
  for (const Operator& op : g_registry.operators) {
    RETURN_IF_FAILED(ort::CustomOpDomainAdd::call(api, g_registry.domain, &op.base));
  }
  return nullptr;
}

/// Adds our domain to the options, once: a second time, the session would not be created. The
/// options themselves remember it, so that every part of a program may register what it needs.
OrtStatus* add_domain(OrtSessionOptions* options) {
  constexpr char kRegistered[] = "onnx_fuse.registered";
  int found = 0;
  RETURN_IF_FAILED(ort::HasSessionConfigEntry::call(g_api, options, kRegistered, &found));
  if (found) return nullptr;
  RETURN_IF_FAILED(ort::AddCustomOpDomain::call(g_api, options, g_registry.domain));
  return ort::AddSessionConfigEntry::call(g_api, options, kRegistered, "1");
}

/// The minor number of "1.minor.patch", which is the newest API version that GetApi knows.
unsigned long minor_version(const OrtApiBase* base) {
  const char* dot = strchr(base->GetVersionString(), '.');
  return dot ? strtoul(dot + 1, nullptr, 10) : 0;
}

}  // namespace
}  // namespace onnx_fuse

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace onnx_fuse;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (!api) {  // nothing to make a status with but an older table, whose first slot is the same
    const OrtApi* older = base->GetApi(1);
    return older ? fail(older, "", "onnxruntime 1.17 or newer is needed", ort::kFail) : nullptr;
  }
  static std::atomic_flag busy = ATOMIC_FLAG_INIT;
  while (busy.test_and_set(std::memory_order_acquire)) sched_yield();
  OrtStatus* status = nullptr;
  if (!g_registry.domain) {
    const bool newer = minor_version(base) >= ort::kShapeApiVersion;
    g_has_shape_reference = newer;
    g_api = newer ? base->GetApi(ort::kShapeApiVersion) : api;
    status = fill_registry(g_api);
  }
  if (!status) status = add_domain(options);
  busy.clear(std::memory_order_release);
  return status;
}
