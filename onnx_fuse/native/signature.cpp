// A node's attributes and the list of its operands: read, and checked that they fit each other.
#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "operands.h"

namespace onnx_fuse {
namespace {

constexpr const char* kBodyInput = "core_";

bool needs(const Signature& s, Operand one, Operand other, Message* message) {
  if (!s.has(one) || s.has(other)) return true;
  return message->set("operand '%s' needs operand '%s'", operand_name(one), operand_name(other));
}

bool excludes(const Signature& s, Operand one, Operand other, Message* message) {
  if (!s.has(one) || !s.has(other)) return true;
  return message->set("operands '%s' and '%s' exclude each other", operand_name(one),
                      operand_name(other));
}

/// Exactly one of: the tensor itself, its own weight, the joint weight; and a source for a weight.
bool check_origin(const Signature& s, Operand tensor, Operand weight, Operand source,
                  Message* message) {
  const int ways = s.has(tensor) + s.has(weight) + s.has(kQkvWeight) + s.has(kQkv);
  if (ways != 1) {
    return message->set(
        "exactly one of the operands '%s', '%s', 'qkv' and 'qkv_weight' must be given, found %d",
        operand_name(tensor), operand_name(weight), ways);
  }
  return needs(s, weight, source, message);
}

/// A sequence that nothing is projected from says nothing, and would not be read.
bool check_used(const Signature& s, Operand source, bool used, Message* message) {
  if (!s.has(source) || used) return true;
  return message->set("operand '%s' is given, but nothing is projected from it",
                      operand_name(source));
}

bool check_operands(const Signature& s, Message* m) {
  constexpr Operand kPairs[][2] = {
      {kQkvWeight, kHidden},
      {kQkvBias, kQkvWeight},
      {kQBias, kQWeight},
      {kKBias, kKWeight},
      {kVBias, kVWeight},
      {kQNormBias, kQNormWeight},
      {kKNormBias, kKNormWeight},
      {kQCos, kQSin},
      {kQSin, kQCos},
      {kKCos, kKSin},
      {kKSin, kKCos},
      {kCosCache, kSinCache},
      {kSinCache, kCosCache},
      {kCosCache, kSeqlensK},
      {kPositionIds, kCosCache},
      {kSeqlensK, kTotalSequenceLength},
      {kTotalSequenceLength, kSeqlensK},
      {kSeqlensK, kPastKey},
      {kPastKey, kPastValue},
      {kPastValue, kPastKey},
      {kAttnMask, kMaskFill},
      {kMaskFill, kAttnMask},
      {kGate, kOutWeight},
      {kOutBias, kOutWeight},
  };
  for (const auto& pair : kPairs) {
    if (!needs(s, pair[0], pair[1], m)) return false;
  }
  const auto reads = [&s](Operand source) {
    return (s.has(kKWeight) && s.key_source() == source) ||
           (s.has(kVWeight) && s.value_source() == source);
  };
  constexpr Operand kExcluded[][2] = {
      {kQkvWeight, kContext},     {kQkvWeight, kValueContext}, {kCosCache, kQCos},
      {kCosCache, kKCos},         {kSeqlensK, kAttnMask},      {kSeqlensK, kContext},
      {kSeqlensK, kValueContext},
  };
  for (const auto& pair : kExcluded) {
    if (!excludes(s, pair[0], pair[1], m)) return false;
  }
  return check_origin(s, kQuery, kQWeight, kHidden, m) &&
         check_origin(s, kKey, kKWeight, s.key_source(), m) &&
         check_origin(s, kValue, kVWeight, s.value_source(), m) &&
         check_used(s, kHidden, s.has(kQkvWeight) || s.has(kQWeight) || reads(kHidden), m) &&
         check_used(s, kContext, reads(kContext), m) &&
         check_used(s, kValueContext, reads(kValueContext), m);
}

bool check_norm(const Signature& s, const char* attribute, NormKind kind, int64_t over_heads,
                Operand weight, Operand bias, Message* message) {
  if (over_heads != 0 && over_heads != 1) {
    return message->set("attribute '%s_over_heads' is %lld, expected 0 or 1", attribute,
                        static_cast<long long>(over_heads));
  }
  if (kind == NormKind::kNone && s.has(weight)) {
    return message->set("operand '%s' is given, but attribute '%s' is \"none\"",
                        operand_name(weight), attribute);
  }
  if (kind != NormKind::kLayer && s.has(bias)) {
    return message->set("operand '%s' is given, but attribute '%s' is not \"layer\"",
                        operand_name(bias), attribute);
  }
  return true;
}

bool check_numbers(const Attributes& a, Message* message) {
  constexpr int64_t kMost = 1 << 24;  // products of three of them and of a panel fit 64 bits
  const struct {
    const char* name;
    int64_t value, least, most;
  } rows[] = {
      {"num_heads", a.num_heads, 1, kMost},
      {"kv_num_heads", a.kv_num_heads, 1, kMost},
      {"head_dim", a.head_dim, 1, kMost},
      {"v_head_dim", a.v_head_dim, 1, kMost},
      {"out_size", a.out_size, 0, INT64_C(1) << 40},
      {"rotary_embedding_dim", a.rotary_embedding_dim, 0, a.head_dim},
      {"is_causal", a.is_causal, 0, 1},
      {"window_size", a.window_size, 0, INT32_MAX},
      {"window_cache", a.window_cache, 0, 1},
      {"interleaved", a.interleaved, 0, 1},
      {"zero_nan", a.zero_nan, 0, 2},
  };
  for (const auto& row : rows) {
    if (row.value >= row.least && row.value <= row.most) continue;
    return message->set("attribute '%s' is %lld, expected %lld to %lld", row.name,
                        static_cast<long long>(row.value), static_cast<long long>(row.least),
                        static_cast<long long>(row.most));
  }
  if (a.num_heads % a.kv_num_heads != 0) {
    return message->set("attribute 'num_heads' is %lld, no multiple of kv_num_heads = %lld",
                        static_cast<long long>(a.num_heads),
                        static_cast<long long>(a.kv_num_heads));
  }
  if (a.rotary_embedding_dim % 2 != 0) {
    return message->set("attribute 'rotary_embedding_dim' is %lld, expected an even number",
                        static_cast<long long>(a.rotary_embedding_dim));
  }
  const struct {
    const char* name;
    float value, least;
  } numbers[] = {
      {"scale", a.scale, -FLT_MAX},
      {"softcap", a.softcap, 0},
      {"q_norm_epsilon", a.q_norm_epsilon, 0},
      {"k_norm_epsilon", a.k_norm_epsilon, 0},
  };
  for (const auto& row : numbers) {
    if (row.least <= row.value && row.value <= FLT_MAX) continue;
    return message->set("attribute '%s' is %g, expected a finite number%s", row.name,
                        static_cast<double>(row.value), row.least == 0 ? " of at least 0" : "");
  }
  return true;
}

/// The operand of this name, kOperandCount if there is none.
Operand find_operand(const char* name, size_t length) {
  for (int i = 0; i < kOperandCount; ++i) {
    const char* own = operand_name(static_cast<Operand>(i));
    if (strlen(own) == length && memcmp(own, name, length) == 0) return static_cast<Operand>(i);
  }
  return kOperandCount;
}

}  // namespace

bool Message::set(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return false;
}

bool parse_operands(const char* text, Signature* signature, Message* message) {
  for (int& position : signature->position) position = -1;
  signature->count = 0;
  int next = 0;  // the first operand that may still come
  for (const char* at = text; *at != '\0';) {
    const size_t length = strcspn(at, ",");
    if (strncmp(at, kBodyInput, strlen(kBodyInput)) == 0) {
      next = kOperandCount;
      ++signature->count;
      at += length;
      if (*at == ',') ++at;
      continue;
    }
    const Operand o = find_operand(at, length);
    if (o == kOperandCount) {
      return message->set("attribute 'operands' names '%.*s', which is no operand",
                          static_cast<int>(length < 80 ? length : 80), at);
    }
    if (o < next) {
      return message->set("attribute 'operands' names '%s' twice or out of order", operand_name(o));
    }
    next = o + 1;
    signature->position[o] = signature->count++;
    at += length;
    if (*at == ',') ++at;
  }
  return true;
}

bool parse_norm(const char* attribute, const char* text, NormKind* kind, Message* message) {
  constexpr const char* kNames[] = {"none", "rms", "layer", "l2"};
  for (int i = 0; i < 4; ++i) {
    if (strcmp(text, kNames[i]) == 0) {
      *kind = static_cast<NormKind>(i);
      return true;
    }
  }
  return message->set("attribute '%s' is \"%.40s\", expected none, rms, layer or l2", attribute,
                      text);
}

bool parse_precision(const char* text, Precision* precision, Message* message) {
  constexpr const char* kNames[] = {"fp32", "bf16x3", "bf16"};
  for (int i = 0; i < 3; ++i) {
    if (strcmp(text, kNames[i]) == 0) {
      *precision = static_cast<Precision>(i);
      return true;
    }
  }
  return message->set("attribute 'precision' is \"%.40s\", expected fp32, bf16x3 or bf16", text);
}

bool check_signature(const Signature& s, Message* message) {
  const Attributes& a = s.attributes;
  if (!check_numbers(a, message) || !check_operands(s, message) ||
      !check_norm(s, "q_norm", a.q_norm, a.q_norm_over_heads, kQNormWeight, kQNormBias, message) ||
      !check_norm(s, "k_norm", a.k_norm, a.k_norm_over_heads, kKNormWeight, kKNormBias, message)) {
    return false;
  }
  if (s.has(kOutWeight) != (a.out_size > 0)) {
    return message->set("attribute 'out_size' is %lld, but operand 'out_weight' is %s",
                        static_cast<long long>(a.out_size), s.has(kOutWeight) ? "given" : "absent");
  }
  const bool rotates = s.has(kQCos) || s.has(kKCos) || s.has(kCosCache);
  if (rotates != (a.rotary_embedding_dim > 0)) {
    return message->set("attribute 'rotary_embedding_dim' is %lld, but the rotation tables are %s",
                        static_cast<long long>(a.rotary_embedding_dim),
                        rotates ? "given" : "absent");
  }
  if (a.window_cache && a.window_size == 0) {
    return message->set("attribute 'window_cache' needs 'window_size'");
  }
  if (a.window_size > 0 && !(s.has(kSeqlensK) && a.is_causal)) {
    return message->set("attribute 'window_size' needs operand 'seqlens_k' and 'is_causal' = 1");
  }
  return true;
}

bool check_outputs(const Signature& s, size_t outputs, Message* message) {
  if (s.has(kPastKey) && !has_presents(outputs)) {
    return message->set("with past_key the node needs 3 or 4 outputs, it has %zu", outputs);
  }
  if (s.has(kSeqlensK) && has_weights(outputs)) {
    return message->set("with seqlens_k the node needs 3 outputs, it has %zu", outputs);
  }
  return true;
}

}  // namespace onnx_fuse
