// What a call of a block needs, before anything is computed: where its parts lie in the scratch,
// its products and the pieces in which they are handed out, and the form in which attention reads K
// and V.
#pragma once

#include <stddef.h>

#include "kernels.h"
#include "operands.h"
#include "positions.h"

namespace onnx_fuse {

/// One of Q, K and V: where its heads are.
struct Stream {
  const float* data;  // head 0 of batch 0; null if it is projected: it is in the scratch then
  size_t scratch;
  ptrdiff_t batch_stride, head_stride, row_stride, chunk_stride;
  ptrdiff_t seq, heads, dim;
  bool projected;

  HeadRows of(ptrdiff_t batch, ptrdiff_t head) const {
    return {data + batch * batch_stride + head * head_stride, row_stride, chunk_stride};
  }
};

/// What a core does in a microsecond, roughly.
struct Pace {
  double multiply_adds = 0, bytes = 0;  // these of weights or caches

  double microseconds(double most_multiply_adds, double most_bytes) const {
    const double compute = most_multiply_adds / multiply_adds, read = most_bytes / bytes;
    return compute > read ? compute : read;
  }
};

/// A product, where in the scratch its C is, and the pieces in which it is handed out.
struct Product {
  Gemm gemm;
  size_t scratch;
  bool is_packed;
  size_t packed_scratch;
  ptrdiff_t row_piece, panel_piece, row_pieces, panel_pieces;

  ptrdiff_t items() const { return row_pieces * panel_pieces; }
  /// The product that computes an item: some rows, of some panels.
  Gemm item(ptrdiff_t number) const;
  double weight_bytes() const;
  double work(const Pace& pace) const;  // microseconds
  ptrdiff_t pack_items() const;
  double pack_work() const;
};

/// Microseconds of work below which a hand-over (1 us, measured, and the other core's cold caches)
/// costs more than it brings; and those of a step below which it isn't worth meeting again.
constexpr double kWorthSharing = 8.0, kWorthMeeting = 1.0;

/// Counts floats, in units of cache lines.
struct Layout {
  size_t used = 0;
  bool overflow = false;
  size_t reserve(int64_t a, int64_t b = 1, int64_t c = 1);
};

/// Offsets in the scratch, in floats.
struct Places {
  size_t local = 0;  // of worker 0
  size_t counters = 0;
  size_t key_panels = 0, values = 0, narrow_values = 0, greatest = 0, context = 0;
  size_t part_results = 0;
  size_t staged_keys = 0, staged_values = 0;  // joined rows that no present can hold
  size_t tables = 0;  // with cos_cache: (batch, q_seq, rotary_dim) of cosines, then of sines
  size_t query_statistics = 0, key_statistics = 0;
};

struct Outputs {
  float* output;         // (batch, q_seq, out_size or num_heads * v_head_dim)
  float* present_key;    // (batch, kv_num_heads, total_seq, head_dim), or null
  float* present_value;  // (batch, kv_num_heads, total_seq, v_head_dim), or null
  float* attn_weights;   // (batch, num_heads, q_seq, total_seq), or null
};

struct Plan {
  /// For a call with up to `threads` threads (at least 1). The arguments must outlive it, `inputs`
  /// are what check_tensors took.
  Plan(const Signature& s, const Kernels& k, const Extents& e, const Tensor* inputs,
       const Outputs& results, size_t threads);

  /// Scratch for a run, in bytes; false if that is more than a size_t counts.
  bool scratch_bytes(size_t* bytes) const;

  const float* floats(Operand o) const {
    return signature.has(o) ? static_cast<const float*>(tensors[o].data) : nullptr;
  }
  ptrdiff_t extent(Extent e) const { return static_cast<ptrdiff_t>(extents[e]); }

  /// Whether the query heads of a kv head are attended to as rows of one head: with one query
  /// position they can be, if causality hides nothing from any of them.
  bool heads_are_rows() const;
  /// Whether joined K and V are outputs.
  bool has_presents() const { return outputs.present_key && outputs.present_value; }
  /// Whether causality or a window hides anything.
  bool hides() const;
  /// Whether a mask may hide enough to look for it.
  bool is_masked() const;
  /// Whether the workers get about the same if each takes one item at a time.
  bool is_even(ptrdiff_t items) const;
  /// Floats from one panel of V as bfloat16 to the next.
  ptrdiff_t narrow_panel() const { return words_of(total_seq, true) * kPanel; }
  /// Floats of what a part of K and V gives for the query heads of a kv head.
  ptrdiff_t part_size() const { return q_seq * group * part_row(value.dim); }
  /// Microseconds.
  double attend_work() const;

  const Signature& signature;
  const Attributes& attributes;
  const Kernels& kernels;
  const Extents& extents;
  const Tensor* tensors;
  const Outputs outputs;
  Positions positions;
  ptrdiff_t workers;  // 1 if the work isn't worth sharing
  Pace pace;
  bool is_worth_sharing = false;

  ptrdiff_t batch, q_seq, kv_heads, group;  // group: query heads of a kv head
  ptrdiff_t total_seq = 0;                  // the longest batch's past and new positions
  ptrdiff_t present_seq;                    // of the cache: more than these if it is a buffer
  Stream query = {}, key = {}, value = {};
  Product products[3] = {};
  int product_count = 0;
  Product merge = {};
  bool has_merge = false, in_place_value = false, joined_in_present = false;
  bool narrow = false;  // attention's products are of bfloat16
  bool reads_key_rows = false;
  // K and V are attended to in so many parts of so many positions; 0: as one.
  ptrdiff_t parts = 0, part_columns = 0;
  ptrdiff_t context_stride = 0, value_row = 0;

  Layout layout;
  size_t local_size = 0;  // floats of a worker's own part of the scratch
  Places at;

 private:
  void plan_lengths();
  void plan_joint();
  void plan_packed();
  void plan_stream(Stream* s, Operand tensor, Operand weight, Operand bias, Operand source,
                   Extent columns);
  void plan_attention();
  void plan_parts();
  void plan_merge();
  void count_weights();
  void plan_sharing();
  bool is_key_in_rows(bool joined) const;
  Gemm product(Operand source, Operand weight, Operand bias, Extent columns) const;
  void set_weight(Gemm* g, Operand weight) const;
  void add_product(const Gemm& gemm, size_t scratch);
  void place_product(Gemm* gemm, bool whole_heads);
  void find_heads(Stream* s, const Product& p, ptrdiff_t first_column);
  void cut(Product* p) const;
  void plan_packing(Product* p);
};

}  // namespace onnx_fuse
