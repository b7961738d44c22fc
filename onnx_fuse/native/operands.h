// What a node says: its attributes and operands, and the check that they fit each other.
//
// The operator is described in docs/op.md; the table in operands.cpp is that page as data.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

namespace onnx_fuse {

/// The operands in the order in which the attribute `operands` lists them.
enum Operand : int {
  kHidden,
  kContext,
  kValueContext,
  kQuery,
  kKey,
  kValue,
  kQkv,
  kQkvWeight,
  kQWeight,
  kKWeight,
  kVWeight,
  kQkvBias,
  kQBias,
  kKBias,
  kVBias,
  kQNormWeight,
  kQNormBias,
  kKNormWeight,
  kKNormBias,
  kQCos,
  kQSin,
  kKCos,
  kKSin,
  kCosCache,
  kSinCache,
  kPositionIds,
  kPastKey,
  kPastValue,
  kSeqlensK,
  kTotalSequenceLength,
  kAttnBias,
  kAttnMask,
  kMaskFill,
  kSinks,
  kGate,
  kOutWeight,
  kOutBias,
  kOperandCount
};

/// Element types by their ONNX numbers.
enum ElementType : int {
  kAnyType = 0,
  kFloat32 = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kBfloat16 = 16
};

constexpr int kMaxRank = 4;
constexpr int kUnknownRank = -1;

struct Tensor {
  const void* data;
  int type;
  int rank;
  int64_t dims[kMaxRank];  // -1: not known yet
};

/// The extents of a call; those of the node's attributes are known at creation, -1 is unknown.
enum Extent : int {
  kBatch,
  kQSeq,
  kKvSeq,
  kPastSeq,
  kHiddenSize,
  kContextSize,
  kValueContextSize,
  kNumHeads,
  kKvNumHeads,
  kHeadDim,
  kVHeadDim,
  kRotaryDim,
  kOutSize,
  kQColumns,
  kKColumns,
  kVColumns,
  kQkvColumns,
  kHalfRotaryDim,
  kMaxPositions,
  kPresentSeq,  // with seqlens_k, whose content decides it
  kExtentCount
};

struct Extents {
  int64_t value[kExtentCount];
  int64_t operator[](Extent e) const { return value[e]; }
  /// Positions of present_key; -1 while an extent of theirs is unknown.
  int64_t total_seq() const {
    if (value[kPresentSeq] >= 0) return value[kPresentSeq];
    const bool known = value[kPastSeq] >= 0 && value[kKvSeq] >= 0;
    return known ? value[kPastSeq] + value[kKvSeq] : -1;
  }
};

struct Attributes {
  int64_t num_heads, kv_num_heads, head_dim, v_head_dim, out_size, rotary_embedding_dim;
  int64_t is_causal, window_size, window_cache, interleaved, q_norm_over_heads, k_norm_over_heads,
      zero_nan;
  float scale, softcap, q_norm_epsilon, k_norm_epsilon;
  NormKind q_norm, k_norm;
  Precision precision;
};

/// One sentence about what is wrong.
struct Message {
  char text[400];
  /// Always false, so that a check can end with `return message.set(...)`.
  bool set(const char* format, ...) __attribute__((format(printf, 2, 3)));
};

struct Signature {
  Attributes attributes;
  int position[kOperandCount];  // among the node's inputs, or -1
  int count;

  bool has(Operand o) const { return position[o] >= 0; }
  /// The sequence from which Q, K or V is projected (with q_, k_, v_ or qkv_weight).
  Operand key_source() const { return has(kContext) ? kContext : kHidden; }
  Operand value_source() const { return has(kValueContext) ? kValueContext : key_source(); }
};

const char* operand_name(Operand operand);

/// Reads the attribute `operands`. Names behind them that begin with `core_` are of inputs that the
/// function body alone reads; they are counted.
bool parse_operands(const char* text, Signature* signature, Message* message);

bool parse_norm(const char* attribute, const char* text, NormKind* kind, Message* message);
bool parse_precision(const char* text, Precision* precision, Message* message);

/// Whether the attributes make sense by themselves and with the operands that are there.
bool check_signature(const Signature& signature, Message* message);

constexpr size_t kOutputCount = 4;

/// What a node with so many outputs gives beside the first: the weights are the last of an even
/// number.
constexpr bool has_presents(size_t outputs) { return outputs > 2; }
constexpr bool has_weights(size_t outputs) { return outputs % 2 == 0; }

/// Whether so many outputs go with the operands.
bool check_outputs(const Signature& signature, size_t outputs, Message* message);

/// Whether each operand has its type and shape, and what extents follow. Unknown dimensions (-1)
/// fit everything. `tensors` is indexed by Operand; rows of absent operands are not read.
bool check_tensors(const Signature& signature, const Tensor* tensors, Extents* extents,
                   Message* message);

}  // namespace onnx_fuse
