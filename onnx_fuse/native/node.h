// One node of a session: made from what the graph says of it, called with tensors. With
// register.cpp all that knows onnxruntime.
#pragma once

#include <stddef.h>

#include "ort_abi.h"

namespace onnx_fuse {

/// Calls whose status ends the caller's work at once.
#define RETURN_IF_FAILED(call)                     \
  do {                                             \
    if (OrtStatus* failed = (call)) return failed; \
  } while (false)

/// A status that says what is wrong with the node.
OrtStatus* fail(const OrtApi* api, const char* node, const char* text,
                ort::ErrorCode code = ort::kInvalidArgument);

/// Makes a node, or tells why it isn't right. `is_since_1_24`: whether onnxruntime is at least
/// that; the API's table then has slot 414.
OrtStatus* create_node(const OrtApi* api, bool is_since_1_24, const OrtKernelInfo* info,
                       void** made);
OrtStatus* compute_node(void* self, OrtKernelContext* context);
void destroy_node(void* self);

}  // namespace onnx_fuse
