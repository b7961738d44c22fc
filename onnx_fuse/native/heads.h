// The heads of a block: their norms, rotations and masks, K and V as attention reads them, and
// their rows.
#pragma once

#include "plan.h"

namespace onnx_fuse {

/// K or V of one head: what was cached, all that is read, and what is cached afterwards.
struct Cache {
  const float* past;  // the first row that is joined; null: there is none
  float* joined;      // past and new rows; null: they are not joined
  float* present;     // null: it is no output
  ptrdiff_t dim;
  bool in_place;  // past and present are one memory
};

/// The heads of one run of a plan. `local` is always the scratch of the worker that calls.
class Heads {
 public:
  Heads(const Plan& plan, float* scratch);

  /// The rotation's rows of each new position, with cos_cache.
  void fill_tables() const;
  /// The rows [row, row + rows) of all query or key heads.
  void measure(bool of_query, ptrdiff_t batch, ptrdiff_t row, ptrdiff_t rows) const;
  /// K and V of a kv head, as attention reads them and as caches.
  void prepare(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const;
  /// The query heads of a kv head that was prepared.
  void attend_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const;
  /// The rows [row, row + rows) of a query head whose kv head was prepared.
  void attend(ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row, ptrdiff_t rows, float* local) const;
  /// K and V of a part's positions are joined and read, while they are in the caches.
  void attend_part(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part, float* local) const;
  void combine_parts(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const;

 private:
  const float* floats(Operand o) const { return plan_.floats(o); }
  ptrdiff_t extent(Extent e) const { return plan_.extent(e); }
  /// The number of a kv head among those of all batches.
  ptrdiff_t index_of(ptrdiff_t batch, ptrdiff_t kv_head) const {
    return batch * plan_.kv_heads + kv_head;
  }

  /// Means and factors of a batch's rows.
  float* statistics_of(bool of_query, ptrdiff_t batch) const;
  Norm norm(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  Rope rope(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  ScoreTerm term(Operand o, ptrdiff_t batch, ptrdiff_t head) const;
  AttendTask attend_task(ptrdiff_t batch, ptrdiff_t head, float* local) const;
  AttendTask group_task(ptrdiff_t batch, ptrdiff_t kv_head, float* local) const;
  template <class F>
  void for_group(ptrdiff_t batch, ptrdiff_t kv_head, float* local, F f) const;
  void attend_prepared(AttendTask* task, ptrdiff_t batch, ptrdiff_t kv_head) const;

  float* key_panels(ptrdiff_t index) const;
  float* narrow_values(ptrdiff_t index) const;
  HeadRows key_rows(ptrdiff_t batch, ptrdiff_t kv_head) const;
  HeadRows value_rows(ptrdiff_t batch, ptrdiff_t kv_head) const;
  float* part_results(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t part) const;
  ptrdiff_t seen_parts(ptrdiff_t batch) const;
  /// The greatest elements of K and of V of a kv head; NaN: not known, or one is not finite.
  float* greatest_of(ptrdiff_t index) const {
    return scratch_ + plan_.at.greatest + static_cast<size_t>(2 * index);
  }

  HeadRows join(ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin, ptrdiff_t end, float* greatest,
                float* local) const;
  void join_keys(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                 ptrdiff_t end, float* greatest, float* local) const;
  void join_values(const Cache& cache, ptrdiff_t batch, ptrdiff_t kv_head, ptrdiff_t begin,
                   ptrdiff_t end) const;
  void round_values(const HeadRows& rows, ptrdiff_t count, ptrdiff_t index, ptrdiff_t begin) const;
  float* joined(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const;
  Cache cache(bool of_key, ptrdiff_t batch, ptrdiff_t kv_head) const;
  void move_past(Cache* cache, ptrdiff_t batch) const;
  void finish_present(const Cache& cache, ptrdiff_t batch) const;

  const Plan& plan_;
  float* const scratch_;
  const Stream query_, key_, value_;  // with their data
};

}  // namespace onnx_fuse
