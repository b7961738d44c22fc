// Turns a node and its tensors into a signature and pointers, and failures into statuses.
#include "node.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <new>

#include "dispatch.h"
#include "operands.h"
#include "positions.h"
#include "run.h"
#include "workers.h"

namespace onnx_fuse {

OrtStatus* fail(const OrtApi* api, const char* node, const char* text, ort::ErrorCode code) {
  char whole[768];
  snprintf(whole, sizeof whole, "onnx_fuse: node '%s': %s", node, text);
  return ort::CreateStatus::call(api, code, whole);
}

namespace {

struct Node {
  const OrtApi* api = nullptr;
  bool is_since_1_24 = false;
  char name[256] = {};  // the node's, for messages
  Signature signature = {};
  const Kernels* kernels = nullptr;
  OrtMemoryInfo* memory = nullptr;
  mutable Workers workers;

  explicit Node(size_t processors) : workers(processors) {}
};

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
      {"window_size", &a.window_size},
      {"window_cache", &a.window_cache},
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

/// The node's name; of one that is too long the end, which tells nodes apart.
void read_name(Node* node, const OrtKernelInfo* info) {
  constexpr size_t kMost = sizeof node->name;
  size_t size = kMost;  // with the 0 at the end; what it should have been, if it is too small
  OrtStatus* status = ort::InfoNodeName::call(node->api, info, node->name, &size);
  if (!status) return;
  ort::ReleaseStatus::call(node->api, status);
  snprintf(node->name, kMost, "(name too long)");
  char* whole = size > kMost ? static_cast<char*>(malloc(size)) : nullptr;
  if (!whole) return;
  status = ort::InfoNodeName::call(node->api, info, whole, &size);
  if (status) {
    ort::ReleaseStatus::call(node->api, status);
  } else {
    snprintf(node->name, kMost, "...%s", whole + strlen(whole) - (kMost - 4));
  }
  free(whole);
}

OrtStatus* set_up(Node* node, const OrtKernelInfo* info) {
  const OrtApi* api = node->api;
  read_name(node, info);
  Message message = {};
  Signature& s = node->signature;
  if (!read_attributes({api, info, &message}, &s) || !check_signature(s, &message)) {
    return fail(api, node->name, message.text);
  }
  // Before 1.24 the window of the operator that the node replaces was one wider than it says.
  const bool is_wider = s.attributes.window_size > 0 && !s.attributes.window_cache;
  if (is_wider && !node->is_since_1_24) ++s.attributes.window_size;
  size_t inputs = 0, outputs = 0;
  RETURN_IF_FAILED(ort::InfoInputCount::call(api, info, &inputs));
  RETURN_IF_FAILED(ort::InfoOutputCount::call(api, info, &outputs));
  if (inputs != static_cast<size_t>(s.count)) {
    message.set("attribute 'operands' names %d operands, the node has %zu inputs", s.count, inputs);
    return fail(api, node->name, message.text);
  }
  if (!check_outputs(s, outputs, &message)) return fail(api, node->name, message.text);
  Tensor tensors[kOperandCount] = {};
  RETURN_IF_FAILED(read_declared(api, info, s, tensors));
  Extents extents;
  if (!check_tensors(s, tensors, &extents, &message)) return fail(api, node->name, message.text);

  const char* requested = nullptr;
  node->kernels = select_kernels(&requested);
  if (!node->kernels) {
    char known[128] = "";
    list_kernels(known, sizeof known);
    message.set("ONNX_FUSE_ISA is '%.40s', which is none of this machine's: %s", requested, known);
    return fail(api, node->name, message.text);
  }
  constexpr int kArena = 1, kDefault = 0;
  return ort::CreateCpuMemoryInfo::call(api, kArena, kDefault, &node->memory);
}

// ---- Call

OrtStatus* read_tensor(const Node& node, const OrtValue* value, Tensor* t) {
  const OrtApi* api = node.api;
  void* data = nullptr;
  RETURN_IF_FAILED(ort::GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  t->data = data;
  if (node.is_since_1_24) {
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

OrtStatus* read_inputs(const Node& node, const OrtKernelContext* context, Tensor* tensors) {
  const Signature& s = node.signature;
  for (int o = 0; o < kOperandCount; ++o) {
    if (s.position[o] < 0) continue;
    const OrtValue* value = nullptr;
    RETURN_IF_FAILED(
        ort::ContextInput::call(node.api, context, static_cast<size_t>(s.position[o]), &value));
    if (!value) {
      Message message;
      message.set("operand '%s' has no value", operand_name(static_cast<Operand>(o)));
      return fail(node.api, node.name, message.text);
    }
    RETURN_IF_FAILED(read_tensor(node, value, &tensors[o]));
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

OrtStatus* get_outputs(const Node& node, OrtKernelContext* context, const Extents& e,
                       Outputs* outputs) {
  const Attributes& a = node.signature.attributes;
  const OrtApi* api = node.api;
  const int64_t width = a.out_size > 0 ? a.out_size : a.num_heads * a.v_head_dim;
  const int64_t output[] = {e[kBatch], e[kQSeq], width};
  const int64_t key[] = {e[kBatch], a.kv_num_heads, e.total_seq(), a.head_dim};
  const int64_t value[] = {e[kBatch], a.kv_num_heads, e.total_seq(), a.v_head_dim};
  const int64_t weights[] = {e[kBatch], a.num_heads, e[kQSeq], e.total_seq()};
  RETURN_IF_FAILED(get_output(api, context, 0, output, 3, &outputs->output));
  size_t count = 0;
  RETURN_IF_FAILED(ort::ContextOutputCount::call(api, context, &count));
  if (has_presents(count)) {
    RETURN_IF_FAILED(get_output(api, context, 1, key, 4, &outputs->present_key));
    RETURN_IF_FAILED(get_output(api, context, 2, value, 4, &outputs->present_value));
  }
  if (!has_weights(count)) return nullptr;
  return get_output(api, context, count - 1, weights, 4, &outputs->attn_weights);
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

OrtStatus* run_block(const Node& node, OrtKernelContext* context, const Plan& plan) {
  const OrtApi* api = node.api;
  size_t bytes = 0;
  if (!plan.scratch_bytes(&bytes)) return fail(api, node.name, "the shapes are too large");
  OrtAllocator* allocator = nullptr;
  RETURN_IF_FAILED(ort::ContextAllocator::call(api, context, node.memory, &allocator));
  constexpr size_t kAlignment = 64;
  void* memory = nullptr;
  OrtStatus* status = ort::AllocatorAlloc::call(api, allocator, bytes + kAlignment, &memory);
  if (!status && !memory) status = fail(api, node.name, "out of memory", ort::kFail);
  if (!status) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    void* scratch = reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);
    Host host = {api, context};
    node.workers.observe(run_plan(plan, scratch, {&host, run_in_pool}));
    status = ort::AllocatorFree::call(api, allocator, memory);
  }
  ort::ReleaseAllocator::call(api, allocator);
  return status;
}

}  // namespace

OrtStatus* create_node(const OrtApi* api, bool is_since_1_24, const OrtKernelInfo* info,
                       void** made) {
  // Not operator new: libstdc++ would come with it, and with that a newer glibc than onnxruntime's.
  void* memory = malloc(sizeof(Node));
  const long processors = sysconf(_SC_NPROCESSORS_ONLN);
  Node* node =
      memory ? new (memory) Node(processors > 0 ? static_cast<size_t>(processors) : 1) : nullptr;
  if (!node) return fail(api, "", "out of memory", ort::kFail);
  node->api = api;
  node->is_since_1_24 = is_since_1_24;
  if (OrtStatus* status = set_up(node, info)) {
    destroy_node(node);
    return status;
  }
  *made = node;
  return nullptr;
}

OrtStatus* compute_node(void* self, OrtKernelContext* context) {
  const Node& node = *static_cast<const Node*>(self);
  Tensor tensors[kOperandCount] = {};
  RETURN_IF_FAILED(read_inputs(node, context, tensors));
  Extents extents;
  Message message;
  if (!check_tensors(node.signature, tensors, &extents, &message)) {
    return fail(node.api, node.name, message.text);
  }
  if (!check_lengths(node.signature, tensors, &extents, &message)) {
    return fail(node.api, node.name, message.text);
  }
  Outputs outputs = {};
  RETURN_IF_FAILED(get_outputs(node, context, extents, &outputs));
  const Plan plan(node.signature, *node.kernels, extents, tensors, outputs, node.workers.count());
  return run_block(node, context, plan);
}

void destroy_node(void* self) {
  Node* node = static_cast<Node*>(self);
  if (node->memory) ort::ReleaseMemoryInfo::call(node->api, node->memory);
  node->~Node();
  free(node);
}

}  // namespace onnx_fuse
