// The operators of the domain `onnx_fuse` for onnxruntime 1.17 and newer, and their registration.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "dispatch.h"
#include "node.h"
#include "operands.h"
#include "ort_abi.h"

namespace onnx_fuse {
namespace {

// The newest table that the onnxruntime which registered us has, and whether it has slot 414.
const OrtApi* g_api = nullptr;
bool g_is_since_1_24 = false;

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  return create_node(g_is_since_1_24 ? g_api : api, g_is_since_1_24, info, out);
}

/// An operator and its name.
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

// ---- The output's shape while a graph is built

/// A node's shapes while the graph is built; a failure leaves the outputs' shapes unknown.
struct Inference {
  const OrtApi* api;
  OrtShapeInferContext* context;
  Signature signature = {};

  bool ok(OrtStatus* status) const {
    if (status) ort::ReleaseStatus::call(api, status);
    return !status;
  }
  bool attribute(const char* name, int type, void* data, size_t size) const {
    const OrtOpAttr* attribute = nullptr;
    return ok(ort::ShapeAttribute::call(api, context, name, &attribute)) && attribute &&
           ok(ort::ReadOpAttr::call(api, attribute, type, data, size, &size));
  }
  bool integer(const char* name, int64_t* value) const {
    return attribute(name, ort::kInt, value, sizeof *value);
  }
  bool read() {
    Attributes& a = signature.attributes;
    char operands[640] = {};
    Message message;
    return attribute("operands", ort::kString, operands, sizeof operands - 1) &&
           parse_operands(operands, &signature, &message) && integer("num_heads", &a.num_heads) &&
           integer("v_head_dim", &a.v_head_dim) && integer("out_size", &a.out_size);
  }
};

/// A shape of numbers, -1 where a dimension isn't one.
struct InferredShape {
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};

  void append(int64_t dim) { dims[rank++] = dim; }

  /// Appends dimension `axis` of an operand.
  void take(const Inference& in, Operand o, size_t axis) {
    append(-1);
    OrtTensorTypeAndShapeInfo* info = nullptr;
    int64_t found[kMaxRank];
    size_t count = 0;
    const size_t position = static_cast<size_t>(in.signature.position[o]);
    if (in.signature.has(o) && in.ok(ort::ShapeInput::call(in.api, in.context, position, &info)) &&
        info && in.ok(ort::GetDimensionsCount::call(in.api, info, &count)) && axis < count &&
        count <= kMaxRank && in.ok(ort::GetDimensions::call(in.api, info, found, count))) {
      dims[rank - 1] = found[axis];
    }
  }
  void set(const Inference& in, size_t output) {
    if (std::find(dims, dims + rank, -1) != dims + rank) return;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (!in.ok(ort::CreateTensorTypeAndShapeInfo::call(in.api, &info))) return;
    // onnxruntime 1.17 takes no shape that says nothing of names.
    const char* names[kMaxRank] = {"", "", "", ""};
    if (in.ok(ort::SetTensorElementType::call(in.api, info, kFloat32)) &&
        in.ok(ort::SetDimensions::call(in.api, info, dims, rank)) &&
        in.ok(ort::SetSymbolicDimensions::call(in.api, info, names, rank))) {
      in.ok(ort::ShapeSetOutput::call(in.api, in.context, output, info));
    }
    ort::ReleaseTensorTypeAndShapeInfo::call(in.api, info);
  }
};

/// Tells onnxruntime the first output's shape if it is all numbers. Named dimensions aren't told:
/// the original's views hid them from it, too, and what it fuses when it knows them is slower
/// (docs/decisions.md). Nothing tells here whether the node has the other two outputs, and up
/// to 1.23 setting the shape of one that it lacks aborts the process.
OrtStatus* infer_output(const OrtCustomOp*, OrtShapeInferContext* context) {
  Inference in = {g_api, context};
  if (!in.read()) return nullptr;
  const Signature& s = in.signature;
  const Attributes& a = s.attributes;
  const Operand source = s.has(kQuery) ? kQuery : s.has(kQkv) ? kQkv : kHidden;
  InferredShape output;
  output.take(in, source, 0);
  output.take(in, source, source == kQuery ? 2 : 1);
  output.append(a.out_size > 0 ? a.out_size : a.num_heads * a.v_head_dim);
  output.set(in, 0);
  return nullptr;
}

// ---- The operators

OrtCustomOp block_operator() {
  OrtCustomOp op = {};
  op.version = ort::kApiVersion;
  op.GetName = [](const OrtCustomOp* self) {
    return reinterpret_cast<const Operator*>(self)->name;
  };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputType = [](const OrtCustomOp*, size_t) -> int { return kAnyType; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kVariadic; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return kOutputCount; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return kFloat32; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
    return index == 0 ? ort::kRequired : ort::kOptional;
  };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute_node;
  op.KernelDestroy = destroy_node;
  op.InferOutputShapeFn = infer_output;
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
  size += list_kernels(text + size, sizeof text - static_cast<size_t>(size));
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
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return kUint8; };
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
    g_is_since_1_24 = newer;
    g_api = newer ? base->GetApi(ort::kShapeApiVersion) : api;
    status = fill_registry(g_api);
  }
  if (!status) status = add_domain(options);
  busy.clear(std::memory_order_release);
  return status;
}
