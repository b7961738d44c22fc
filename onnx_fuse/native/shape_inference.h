// The output's shape while a graph is built. Belongs to register.cpp, which alone includes it.
#pragma once

#include <algorithm>

#include "operands.h"
#include "ort_abi.h"

namespace onnx_fuse {
namespace {

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
void infer_output(const OrtApi* api, OrtShapeInferContext* context) {
  Inference in = {api, context};
  if (!in.read()) return;
  const Signature& s = in.signature;
  const Attributes& a = s.attributes;
  const Operand source = s.has(kQuery) ? kQuery : s.has(kQkv) ? kQkv : kHidden;
  InferredShape output;
  output.take(in, source, 0);
  output.take(in, source, source == kQuery ? 2 : 1);
  output.append(a.out_size > 0 ? a.out_size : a.num_heads * a.v_head_dim);
  output.set(in, 0);
}

}  // namespace
}  // namespace onnx_fuse
