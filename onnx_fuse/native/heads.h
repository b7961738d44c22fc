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

/// A kv head of a batch, and the worker at it.
struct KvHead {
  ptrdiff_t index;  // among those of all batches
  ptrdiff_t batch, head;
  float* local;  // the worker's scratch
};

/// The heads of one run of a plan.
class Heads {
 public:
  Heads(const Plan& plan, float* scratch);

  /// The rotation's rows of each new position, with cos_cache.
  void fill_tables() const;
  /// The rows [row, row + rows) of all query or key heads.
  void measure(bool of_query, ptrdiff_t batch, ptrdiff_t row, ptrdiff_t rows) const;
  /// K and V, as attention reads them and as caches.
  void prepare(const KvHead& kv) const;
  /// The query heads of a kv head that was prepared.
  void attend_group(const KvHead& kv) const;
  /// The rows [row, row + rows) of one of them.
  void attend(const KvHead& kv, ptrdiff_t member, ptrdiff_t row, ptrdiff_t rows) const;
  /// K and V of a part's positions are joined and read, while they are in the caches.
  void attend_part(const KvHead& kv, ptrdiff_t part) const;
  void combine_parts(const KvHead& kv) const;

 private:
  const float* floats(Operand o) const { return plan_.floats(o); }
  ptrdiff_t extent(Extent e) const { return plan_.extent(e); }

  /// Means and factors of a batch's rows.
  float* statistics_of(bool of_query, ptrdiff_t batch) const;
  Norm norm(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  Rope rope(bool of_query, ptrdiff_t batch, ptrdiff_t head) const;
  ScoreTerm term(Operand o, ptrdiff_t batch, ptrdiff_t head) const;
  ScoreTerm gate(ptrdiff_t batch, ptrdiff_t head) const;
  AttendTask attend_task(const KvHead& kv, ptrdiff_t member) const;
  AttendTask group_task(const KvHead& kv) const;
  template <class F>
  void for_group(const KvHead& kv, F f) const;
  void attend_prepared(const KvHead& kv, AttendTask* task) const;

  float* key_panels(const KvHead& kv) const;
  float* narrow_values(const KvHead& kv) const;
  HeadRows key_rows(const KvHead& kv) const;
  HeadRows value_rows(const KvHead& kv) const;
  float* part_results(const KvHead& kv, ptrdiff_t part) const;
  ptrdiff_t seen_parts(ptrdiff_t batch) const;
  /// The greatest elements of K and of V; NaN: not known, or one is not finite.
  float* greatest_of(const KvHead& kv) const {
    return scratch_ + plan_.at.greatest + static_cast<size_t>(2 * kv.index);
  }

  HeadRows join(const KvHead& kv, ptrdiff_t begin, ptrdiff_t end, float* greatest) const;
  void join_keys(const KvHead& kv, const Cache& cache, ptrdiff_t begin, ptrdiff_t end,
                 float* greatest) const;
  void join_values(const KvHead& kv, const Cache& cache, ptrdiff_t begin, ptrdiff_t end) const;
  void round_values(const KvHead& kv, const HeadRows& rows, ptrdiff_t begin, ptrdiff_t count) const;
  float* joined(const KvHead& kv, bool of_key) const;
  Cache cache(const KvHead& kv, bool of_key) const;
  void move_past(Cache* cache, ptrdiff_t batch) const;
  void finish_present(const Cache& cache, ptrdiff_t batch) const;

  const Plan& plan_;
  float* const scratch_;
  const Stream query_, key_, value_;  // with their data
};

}  // namespace onnx_fuse
