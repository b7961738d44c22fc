// The part of onnxruntime's C interface that this library uses, written from the published table
// layout: function tables are arrays of pointers and every newer table keeps the older slots, so a
// slot number is all there is to know. Only register.cpp and node.h include this file.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

/// A table of functions; `ort::call` reads a slot with its type.
struct OrtApi {
  void (*slot[1])();
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

/// What onnxruntime reads of a custom operator, at interface version 17.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};
}  // extern "C"

namespace ort {

constexpr uint32_t kApiVersion = 17;       // the lowest that we need: onnxruntime 1.17
constexpr uint32_t kShapeApiVersion = 24;  // has the cheap shape query (optional)

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum AttributeType : int { kInt = 1, kString = 5 };

/// Slot numbers with their signatures; `Slot<n, signature>` is what `call` needs to know.
template <size_t kIndex, class Signature>
struct Slot;
template <size_t kIndex, class R, class... A>
struct Slot<kIndex, R(A...)> {
  static R call(const OrtApi* api, A... arguments) {
    return reinterpret_cast<R (*)(A...)>(api->slot[kIndex])(arguments...);
  }
};

using CreateStatus = Slot<0, OrtStatus*(int, const char*)>;
using ReleaseStatus = Slot<93, void(OrtStatus*)>;

using CreateCustomOpDomain = Slot<26, OrtStatus*(const char*, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using AddSessionConfigEntry =
    Slot<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)>;
using HasSessionConfigEntry =
    Slot<237, OrtStatus*(const OrtSessionOptions*, const char* key, int* found)>;

using GetTensorMutableData = Slot<51, OrtStatus*(OrtValue*, void**)>;
using CastTypeInfoToTensorInfo =
    Slot<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)>;
using CreateTensorTypeAndShapeInfo = Slot<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)>;
using SetTensorElementType = Slot<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int)>;
using SetDimensions = Slot<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)>;
using GetTensorElementType = Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>;
using GetDimensionsCount = Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using CreateCpuMemoryInfo = Slot<69, OrtStatus*(int, int, OrtMemoryInfo**)>;
using AllocatorAlloc = Slot<75, OrtStatus*(OrtAllocator*, size_t, void**)>;
using AllocatorFree = Slot<76, OrtStatus*(OrtAllocator*, void*)>;
using ReleaseMemoryInfo = Slot<94, void(OrtMemoryInfo*)>;
using ReleaseTypeInfo = Slot<98, void(OrtTypeInfo*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseAllocator = Slot<132, void(OrtAllocator*)>;
using SetSymbolicDimensions =
    Slot<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)>;
/// API 24 and newer: type and shape without an allocation.
using GetTensorElementTypeAndShapeDataReference =
    Slot<414, OrtStatus*(const OrtValue*, int*, const int64_t**, size_t*)>;

using InfoAttributeFloat = Slot<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using InfoAttributeInt = Slot<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using InfoAttributeString = Slot<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>;
using InfoInputCount = Slot<230, OrtStatus*(const OrtKernelInfo*, size_t*)>;
using InfoOutputCount = Slot<231, OrtStatus*(const OrtKernelInfo*, size_t*)>;
using InfoInputTypeInfo = Slot<234, OrtStatus*(const OrtKernelInfo*, size_t, OrtTypeInfo**)>;
using InfoNodeName = Slot<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)>;

using ContextOutputCount = Slot<89, OrtStatus*(const OrtKernelContext*, size_t*)>;
using ContextInput = Slot<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using ContextOutput =
    Slot<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>;
using ContextAllocator =
    Slot<253, OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)>;
using ContextParallelFor =
    Slot<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

using ShapeInput =
    Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>;
using ShapeAttribute =
    Slot<269, OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>;
using ShapeSetOutput =
    Slot<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>;
using ReadOpAttr = Slot<272, OrtStatus*(const OrtOpAttr*, int, void*, size_t, size_t*)>;

}  // namespace ort
