// The operands as data, and the check of the tensors that are given for them.
#include "operands.h"

#include <stdio.h>

namespace onnx_fuse {
namespace {

enum class Form : int {
  kExact,      // the dimensions as listed
  kOrOne,      // all but the last may be 1 instead
  kPanels,     // a weight of (rows, columns) in panels
  kBroadcast,  // broadcastable to the scores, or to the context's rows
  kScalar,     // one element
};

struct Row {
  const char* name;
  Form form;
  int rank;
  Extent dims[kMaxRank];
};

constexpr Row kRows[kOperandCount] = {
    {"hidden", Form::kExact, 3, {kBatch, kQSeq, kHiddenSize}},
    {"context", Form::kExact, 3, {kBatch, kKvSeq, kContextSize}},
    {"value_context", Form::kExact, 3, {kBatch, kKvSeq, kValueContextSize}},
    {"query", Form::kExact, 4, {kBatch, kNumHeads, kQSeq, kHeadDim}},
    {"key", Form::kExact, 4, {kBatch, kKvNumHeads, kKvSeq, kHeadDim}},
    {"value", Form::kExact, 4, {kBatch, kKvNumHeads, kKvSeq, kVHeadDim}},
    {"qkv", Form::kExact, 3, {kBatch, kQSeq, kQkvColumns}},
    {"qkv_weight", Form::kPanels, 2, {kHiddenSize, kQkvColumns}},
    {"q_weight", Form::kPanels, 2, {kHiddenSize, kQColumns}},
    {"k_weight", Form::kPanels, 2, {kContextSize, kKColumns}},
    {"v_weight", Form::kPanels, 2, {kValueContextSize, kVColumns}},
    {"qkv_bias", Form::kExact, 1, {kQkvColumns}},
    {"q_bias", Form::kExact, 1, {kQColumns}},
    {"k_bias", Form::kExact, 1, {kKColumns}},
    {"v_bias", Form::kExact, 1, {kVColumns}},
    {"q_norm_weight", Form::kExact, 2, {kNumHeads, kHeadDim}},
    {"q_norm_bias", Form::kExact, 2, {kNumHeads, kHeadDim}},
    {"k_norm_weight", Form::kExact, 2, {kKvNumHeads, kHeadDim}},
    {"k_norm_bias", Form::kExact, 2, {kKvNumHeads, kHeadDim}},
    {"q_cos", Form::kOrOne, 4, {kBatch, kNumHeads, kQSeq, kRotaryDim}},
    {"q_sin", Form::kOrOne, 4, {kBatch, kNumHeads, kQSeq, kRotaryDim}},
    {"k_cos", Form::kOrOne, 4, {kBatch, kKvNumHeads, kKvSeq, kRotaryDim}},
    {"k_sin", Form::kOrOne, 4, {kBatch, kKvNumHeads, kKvSeq, kRotaryDim}},
    {"cos_cache", Form::kExact, 2, {kMaxPositions, kHalfRotaryDim}},
    {"sin_cache", Form::kExact, 2, {kMaxPositions, kHalfRotaryDim}},
    {"position_ids", Form::kExact, 2, {kBatch, kQSeq}},
    {"past_key", Form::kExact, 4, {kBatch, kKvNumHeads, kPastSeq, kHeadDim}},
    {"past_value", Form::kExact, 4, {kBatch, kKvNumHeads, kPastSeq, kVHeadDim}},
    {"seqlens_k", Form::kExact, 1, {kBatch}},
    {"total_sequence_length", Form::kScalar, 0, {}},
    {"attn_bias", Form::kBroadcast, 0, {}},
    {"attn_mask", Form::kBroadcast, 0, {}},
    {"mask_fill", Form::kBroadcast, 0, {}},
    {"sinks", Form::kExact, 1, {kNumHeads}},
    {"gate", Form::kBroadcast, 0, {}},
    {"out_weight", Form::kPanels, 2, {kOutSize /* rows: see weight_rows */, kOutSize}},
    {"out_bias", Form::kExact, 1, {kOutSize}},
};

constexpr const char* kExtentNames[kExtentCount] = {
    "batch",
    "q_seq",
    "kv_seq",
    "past_seq",
    "hidden_size",
    "context_size",
    "value_context_size",
    "num_heads",
    "kv_num_heads",
    "head_dim",
    "v_head_dim",
    "rotary_embedding_dim",
    "out_size",
    "num_heads * head_dim",
    "kv_num_heads * head_dim",
    "kv_num_heads * v_head_dim",
    "the columns of Q, K and V",
    "rotary_embedding_dim / 2",
    "the positions of the caches",
    "present_seq",
};

/// "(2, 3, ?)" for messages.
struct ShapeText {
  char text[112];
  explicit ShapeText(const Tensor& t) {
    int at = snprintf(text, sizeof text, "(");
    for (int i = 0; i < t.rank && i < kMaxRank; ++i) {
      const char* comma = i + 1 < t.rank ? ", " : "";
      const size_t left = sizeof text - static_cast<size_t>(at);
      at += t.dims[i] < 0
                ? snprintf(text + at, left, "?%s", comma)
                : snprintf(text + at, left, "%lld%s", static_cast<long long>(t.dims[i]), comma);
    }
    snprintf(text + at, sizeof text - static_cast<size_t>(at), ")");
  }
};

/// A weight may be bfloat16 at every precision: it is then widened, exactly.
bool check_type(Operand o, int type, Message* message) {
  const bool weight = kRows[o].form == Form::kPanels;
  const bool length = o == kSeqlensK || o == kTotalSequenceLength;
  const int expected = o == kAttnMask      ? kBool
                       : o == kPositionIds ? kInt64
                       : length            ? kInt32
                                           : kFloat32;
  if (type == expected || (weight && type == kBfloat16)) return true;
  return message->set("operand '%s' has element type %d, expected %s", kRows[o].name, type,
                      weight               ? "float or bfloat16"
                      : expected == kBool  ? "bool"
                      : expected == kInt64 ? "int64"
                      : length             ? "int32"
                                           : "float");
}

/// Binds or compares one dimension of an operand.
bool check_dim(Operand o, const Tensor& t, int axis, Extent e, bool or_one, Extents* extents,
               Message* message) {
  const int64_t found = t.dims[axis];
  int64_t& expected = extents->value[e];
  if (found < 0 || (or_one && found == 1)) return true;
  if (expected < 0) expected = found;
  if (found == expected) return true;
  return message->set("operand '%s' has shape %s: dimension %d is %lld, expected %s = %lld%s",
                      kRows[o].name, ShapeText(t).text, axis, static_cast<long long>(found),
                      kExtentNames[e], static_cast<long long>(expected), or_one ? " or 1" : "");
}

bool check_rank(Operand o, const Tensor& t, int rank, Message* message) {
  if (t.rank == rank) return true;
  return message->set("operand '%s' has %d dimensions, expected %d", kRows[o].name, t.rank, rank);
}

/// Rows of a weight: the size of the sequence that it projects.
int64_t weight_rows(const Signature& s, Operand o, const Extents& extents) {
  const auto size_of = [&](Operand source) {
    return extents[source == kHidden    ? kHiddenSize
                   : source == kContext ? kContextSize
                                        : kValueContextSize];
  };
  switch (o) {
    case kKWeight:
      return size_of(s.key_source());
    case kVWeight:
      return size_of(s.value_source());
    case kOutWeight:
      return s.attributes.num_heads * s.attributes.v_head_dim;
    default:
      return size_of(kHidden);
  }
}

bool check_panels(const Signature& s, Operand o, const Tensor& t, const Extents& extents,
                  Message* message) {
  const int64_t rows = weight_rows(s, o, extents);
  const int64_t columns = extents[kRows[o].dims[1]];
  const bool paired = t.type == kBfloat16, known = rows >= 0;
  if (paired && known && rows % 2 != 0) {
    return message->set("operand '%s' is bfloat16 and has %lld rows, expected an even number",
                        kRows[o].name, static_cast<long long>(rows));
  }
  const Tensor expected = {nullptr,
                           t.type,
                           paired ? 4 : 3,
                           {panels_of(columns), paired && known ? rows / 2 : rows, kPanel, 2}};
  if (!check_rank(o, t, expected.rank, message)) return false;
  for (int axis = 0; axis < expected.rank; ++axis) {
    if (t.dims[axis] < 0 || expected.dims[axis] < 0 || t.dims[axis] == expected.dims[axis])
      continue;
    return message->set(
        "operand '%s' has shape %s, expected %s: panels of %lld rows and %lld columns",
        kRows[o].name, ShapeText(t).text, ShapeText(expected).text, static_cast<long long>(rows),
        static_cast<long long>(columns));
  }
  return true;
}

/// `columns`: of the scores, -1 while they are not known.
bool check_broadcast(Operand o, const Tensor& t, const Extents& extents, int64_t columns,
                     Message* message) {
  if (t.rank > kMaxRank) {
    return message->set("operand '%s' has %d dimensions, expected at most 4", kRows[o].name,
                        t.rank);
  }
  const bool of_rows = o == kGate;
  const int64_t heads = extents[kNumHeads], rows = extents[kQSeq];
  const int64_t target[kMaxRank] = {extents[kBatch], of_rows ? rows : heads, of_rows ? heads : rows,
                                    of_rows ? extents[kVHeadDim] : columns};
  for (int i = 0; i < t.rank; ++i) {
    const int64_t found = t.dims[i], expected = target[kMaxRank - t.rank + i];
    if (found < 0 || expected < 0 || found == 1 || found == expected) continue;
    return message->set(
        "operand '%s' has shape %s, which does not broadcast to (batch, %s) = (%lld, %lld, %lld, "
        "%lld)",
        kRows[o].name, ShapeText(t).text,
        of_rows ? "q_seq, num_heads, v_head_dim" : "num_heads, q_seq, total_seq",
        static_cast<long long>(target[0]), static_cast<long long>(target[1]),
        static_cast<long long>(target[2]), static_cast<long long>(target[3]));
  }
  return true;
}

bool check_tensor(const Signature& s, Operand o, const Tensor& t, Extents* extents,
                  Message* message) {
  const Row& row = kRows[o];
  if (t.rank == kUnknownRank) return true;
  switch (row.form) {
    case Form::kPanels:
      return check_panels(s, o, t, *extents, message);
    case Form::kBroadcast:
      return check_broadcast(o, t, *extents, s.has(kSeqlensK) ? -1 : extents->total_seq(), message);
    case Form::kScalar:
      if (t.rank == 0 || (t.rank == 1 && t.dims[0] <= 1)) return true;
      return message->set("operand '%s' has shape %s, expected one element", row.name,
                          ShapeText(t).text);
    default:
      break;
  }
  if (!check_rank(o, t, row.rank, message)) return false;
  for (int axis = 0; axis < row.rank; ++axis) {
    const bool or_one = row.form == Form::kOrOne && axis + 1 < row.rank;
    if (!check_dim(o, t, axis, row.dims[axis], or_one, extents, message)) return false;
  }
  return true;
}

}  // namespace

const char* operand_name(Operand operand) { return kRows[operand].name; }

bool check_tensors(const Signature& s, const Tensor* tensors, Extents* extents, Message* message) {
  const Attributes& a = s.attributes;
  for (int64_t& value : extents->value) value = -1;
  const struct {
    Extent extent;
    int64_t value;
  } known[] = {
      {kNumHeads, a.num_heads},
      {kKvNumHeads, a.kv_num_heads},
      {kHeadDim, a.head_dim},
      {kVHeadDim, a.v_head_dim},
      {kRotaryDim, a.rotary_embedding_dim},
      {kOutSize, a.out_size},
      {kQColumns, a.num_heads * a.head_dim},
      {kKColumns, a.kv_num_heads * a.head_dim},
      {kVColumns, a.kv_num_heads * a.v_head_dim},
      {kQkvColumns, a.num_heads * a.head_dim + a.kv_num_heads * (a.head_dim + a.v_head_dim)},
      {kHalfRotaryDim, a.rotary_embedding_dim / 2},
  };
  for (const auto& row : known) extents->value[row.extent] = row.value;
  if (!s.has(kPastKey)) extents->value[kPastSeq] = 0;

  for (int i = 0; i < kOperandCount; ++i) {
    const Operand o = static_cast<Operand>(i);
    if (!s.has(o)) continue;
    if (!check_type(o, tensors[o].type, message)) return false;
    if (!check_tensor(s, o, tensors[o], extents, message)) return false;
    // K or V from `hidden` itself: one sequence.
    const bool self = (s.has(kQkvWeight) || (s.has(kKWeight) && s.key_source() == kHidden) ||
                       (s.has(kVWeight) && s.value_source() == kHidden));
    if ((o == kHidden && self) || o == kQkv) extents->value[kKvSeq] = extents->value[kQSeq];
  }
  return true;
}

}  // namespace onnx_fuse
