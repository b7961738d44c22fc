// A whole block as steps over shared scratch, and how the steps are handed to threads.
//
//   pack      A of a product for a unit that wants it so (only some instruction sets)
//   project   Q, K, V = source * weight + bias, by panels and rows
//   measure   row statistics, for norms that span all heads
//   attend    by (batch, kv head): K normed, rotated, joined with the past, put into panels; V
//             joined, where it cannot be read where it lies; then for each query head and each
//             tile of rows: norm, rotation, scores, softmax, values. One position, or a few rows
//             that read K as it lies, behind a longer K: by (batch, kv head, part of K and V)
//   combine   the parts of the latter, at the same places whoever computed them
//   merge     output = context * out_weight + bias, by panels and rows
//
// A step that is too small to share stays on the caller: at a few rows only project and merge are
// handed over. Projecting and attending a head in one go saves a hand-over, but reads three places
// of the weight in turns: measured up to 25 % slower than reading it in order, never faster. How
// the work is split does not change the result, not in a bit.
#pragma once

#include <stddef.h>

#include "kernels.h"
#include "operands.h"
#include "positions.h"

namespace onnx_fuse {

/// The host's thread pool: runs fn(user, i) for all i < count and returns when all are done.
struct Pool {
  void* host;
  void (*run)(void* host, void (*fn)(void* user, size_t i), size_t count, void* user);
};

struct Outputs {
  float* output;         // (batch, q_seq, out_size or num_heads * v_head_dim)
  float* present_key;    // (batch, kv_num_heads, total_seq, head_dim), or null
  float* present_value;  // (batch, kv_num_heads, total_seq, v_head_dim), or null
};

/// One of Q, K and V: where its heads are, and the product that puts them there.
struct Stream {
  const float* data;  // head 0 of batch 0; null while the scratch has no address
  size_t scratch;     // where it begins in the scratch, if projected
  ptrdiff_t batch_stride, head_stride, row_stride, chunk_stride;
  ptrdiff_t seq, heads, dim;
  bool projected;

  HeadRows of(ptrdiff_t batch, ptrdiff_t head) const {
    return {data + batch * batch_stride + head * head_stride, row_stride, chunk_stride};
  }
};

/// K or V of one head: what was cached, all that is read, and what is cached afterwards.
struct Cache {
  const float* past;  // the first row that is joined; null: there is none
  float* joined;      // past and new rows; null: they are not joined
  float* present;     // null: it is no output
  ptrdiff_t dim;
  bool in_place;  // past and present are one memory
};

/// A product, where in the scratch its C is, and the pieces in which it is handed out.
struct Product {
  Gemm gemm;
  size_t scratch;
  bool is_packed;
  size_t packed_scratch;
  ptrdiff_t row_piece, panel_piece, row_pieces, panel_pieces;

  ptrdiff_t items() const { return row_pieces * panel_pieces; }
  double work() const;
  ptrdiff_t pack_items() const;
  double pack_work() const;
};

/// The part of a product that computes these rows and panels.
Gemm slice(const Gemm& g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t panels);

/// A core's time, roughly: 40 multiply-adds a nanosecond, 25 bytes of weights a nanosecond.
double microseconds(double multiply_adds, double bytes);

/// Microseconds of work below which a hand-over (1 us, measured, and the other core's cold caches)
/// costs more than it brings.
constexpr double kWorthSharing = 6.0;

constexpr ptrdiff_t pieces(ptrdiff_t total, ptrdiff_t piece) { return (total + piece - 1) / piece; }

/// Items of a step in ranges, each of which is shared evenly.
struct Ranges {
  ptrdiff_t end[3] = {};  // one past the last item of each
  int count = 0;

  Ranges() = default;
  explicit Ranges(ptrdiff_t items) { add(items); }
  void add(ptrdiff_t one_past_last) { end[count++] = one_past_last; }
  ptrdiff_t items() const { return count > 0 ? end[count - 1] : 0; }
};

/// Counts floats, in units of cache lines.
struct Layout {
  size_t used = 0;
  bool overflow = false;
  size_t reserve(int64_t a, int64_t b = 1, int64_t c = 1);
};

class Block {
 public:
  /// Plans a call for up to `workers` threads (at least 1). `tensors` are what check_tensors took,
  /// `present` says whether K and V are outputs too, both.
  Block(const Signature& signature, const Kernels& kernels, const Extents& extents,
        const Tensor* tensors, bool present, size_t workers);

  /// Scratch for `run`, in bytes; false if that is more than a size_t counts.
  bool scratch_bytes(size_t* bytes) const;

  /// Computes the outputs with scratch aligned to 64 bytes. Returns how many workers took part; 0
  /// if there was nothing worth sharing.
  size_t run(const Outputs& outputs, void* scratch, const Pool& pool);

 private:
  using Step = void (*)(Block& block, ptrdiff_t item, float* local);

  const float* floats(Operand o) const {
    return signature_.has(o) ? static_cast<const float*>(tensors_[o].data) : nullptr;
  }
  ptrdiff_t extent(Extent e) const { return static_cast<ptrdiff_t>(extents_[e]); }

  Gemm product(Operand source, Operand weight, Operand bias, Extent columns) const;
  void plan_stream(Stream* s, Operand tensor, Operand weight, Operand bias, Operand source,
                   Extent columns);
  void place_product(Gemm* gemm, bool whole_heads);
  void find_heads(Stream* s, const Product& p, ptrdiff_t first_column);
  void plan_joint();
  void plan_packed();
  void plan_attention(bool present);
  void plan_parts();
  void plan_merge();
  void add_product(const Gemm& gemm, size_t scratch);
  void cut(Product* p) const;
  void plan_packing(Product* p);
  void place_packed(Product* p);
  bool is_even(ptrdiff_t items) const;

  static void pack_step(Block& block, ptrdiff_t item, float* local);
  static void pack_context_step(Block& block, ptrdiff_t item, float* local);
  static void project_step(Block& block, ptrdiff_t item, float* local);
  static void measure_step(Block& block, ptrdiff_t item, float* local);
  static void prepare_step(Block& block, ptrdiff_t item, float* local);
  static void attend_rows_step(Block& block, ptrdiff_t item, float* local);
  static void attend_step(Block& block, ptrdiff_t item, float* local);
  static void attend_part_step(Block& block, ptrdiff_t item, float* local);
  static void combine_step(Block& block, ptrdiff_t item, float* local);
  static void merge_step(Block& block, ptrdiff_t item, float* local);
  void place(const Outputs& outputs, float* scratch);
  void hand_over(Step step, const Ranges& ranges, double work, const Pool& pool);
  Ranges project_ranges() const;
  double attend_work() const;
  ptrdiff_t attend_pieces() const;
  Norm norm(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  Rope rope(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  ScoreTerm term(Operand o, ptrdiff_t batch, ptrdiff_t head) const;
  void join_keys(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                 ptrdiff_t end, float* greatest, float* local);
  void join_values(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                   ptrdiff_t end);
  HeadRows join(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin, ptrdiff_t end, float* greatest,
                float* local);
  void prepare(ptrdiff_t batch, ptrdiff_t kv_head, float* local);
  float* key_panels(ptrdiff_t index) const;
  float* narrow_values(ptrdiff_t index) const;
  void round_values(const HeadRows& rows, ptrdiff_t count, ptrdiff_t index, ptrdiff_t begin);
  ptrdiff_t narrow_panel() const { return words_of(total_seq_, true) * kPanel; }
  HeadRows key_rows(ptrdiff_t batch, ptrdiff_t kv_head) const;
  HeadRows value_rows(ptrdiff_t batch, ptrdiff_t kv_head) const;
  bool is_key_in_rows(bool joined) const;
  bool hides() const;
  bool is_masked() const;
  /// The greatest elements of K and of V of a kv head; NaN: not known, or one is not finite.
  float* greatest_of(ptrdiff_t index) const {
    return scratch_ + greatest_ + static_cast<size_t>(2 * index);
  }
  bool heads_are_rows() const;
  void plan_lengths();
  void fill_tables();
  float* joined(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const;
  Cache cache(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const;
  void move_past(Cache* cache, ptrdiff_t batch) const;
  void finish_present(const Cache& cache, ptrdiff_t batch) const;
  void attend_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local);
  AttendTask attend_task(ptrdiff_t batch, ptrdiff_t head, float* local) const;
  AttendTask group_task(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const;
  template <class F>
  void for_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local, F f) const;
  ptrdiff_t part_size() const { return q_seq_ * group_ * part_row(value_.dim); }
  float* part_results(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part) const;
  ptrdiff_t seen_parts(ptrdiff_t batch) const;
  void attend_part(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part, float* local);
  void combine_parts(ptrdiff_t batch, ptrdiff_t kv_head, float* local);
  void attend(AttendTask& task, ptrdiff_t batch, ptrdiff_t kv_head);
  void attend(ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row, ptrdiff_t rows, float* local);

  const Signature& signature_;
  const Attributes& attributes_;
  const Kernels& kernels_;
  const Extents& extents_;
  const Tensor* tensors_;
  Positions positions_;
  size_t workers_;
  Outputs outputs_ = {};

  ptrdiff_t batch_, q_seq_, kv_heads_, group_;  // group_: query heads of a kv head
  ptrdiff_t total_seq_;                         // the longest batch's past and new positions
  ptrdiff_t present_seq_;  // positions of the cache: more than these if it is a buffer
  Stream query_ = {}, key_ = {}, value_ = {};
  Product products_[3] = {};
  int product_count_ = 0;
  Product merge_ = {};
  bool has_merge_ = false, in_place_value_ = false, joined_in_present_ = false;
  bool narrow_ = false;  // attention's products are of bfloat16
  bool reads_key_rows_ = false;
  // K and V are attended to in so many parts of so many positions; 0: as one.
  ptrdiff_t parts_ = 0, part_columns_ = 0;

  // Scratch: offsets in floats.
  Layout layout_;
  size_t local_ = 0, local_size_ = 0, key_panels_ = 0, values_ = 0, narrow_values_ = 0;
  size_t greatest_ = 0, context_ = 0, shares_ = 0, part_results_ = 0;
  size_t staged_keys_ = 0, staged_values_ = 0;  // joined rows that no present can hold
  size_t tables_ = 0;  // with cos_cache: (batch, q_seq, rotary_dim) of cosines, then of sines
  size_t query_statistics_ = 0, key_statistics_ = 0;
  ptrdiff_t context_stride_ = 0, value_row_ = 0;
  float* scratch_ = nullptr;
  size_t most_busy_ = 0;
};

}  // namespace onnx_fuse
