#include "run.h"

#include <atomic>
#include <new>

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kMeasureRows = 16;  // rows of a piece of a measuring step
constexpr ptrdiff_t kAttendRows = 48;   // query rows of a piece: K and V pass L2 once for them

/// Items of a step in ranges, each of which is shared evenly.
struct Ranges {
  ptrdiff_t end[3] = {};  // one past the last item of each
  int count = 0;

  Ranges() = default;
  explicit Ranges(ptrdiff_t items) { add(items); }
  void add(ptrdiff_t one_past_last) { end[count++] = one_past_last; }
  ptrdiff_t items() const { return count > 0 ? end[count - 1] : 0; }
};

/// The items of one worker, which is the first to take them: the same part of each range.
struct alignas(64) Share {
  std::atomic<ptrdiff_t> next;
};

/// One run of a plan. A step does one of its items with the scratch of the worker that calls it.
class Run {
 public:
  Run(const Plan& plan, const Outputs& outputs, float* scratch, const Pool& pool);
  void all();
  size_t most_busy() const { return most_busy_; }

 private:
  using Step = void (Run::*)(ptrdiff_t item, float* local) const;
  struct Crew;

  void place(Product* p, float* c) const;
  void hand_over(Step step, const Ranges& ranges, double work);
  Ranges project_ranges() const;
  void project_all();
  void measure_all();
  void attend_all();
  void merge_all();
  ptrdiff_t attend_pieces() const { return pieces(plan_.q_seq, kAttendRows); }

  void pack(ptrdiff_t item, float* local) const;
  void project(ptrdiff_t item, float* local) const;
  void measure(ptrdiff_t item, float* local) const;
  void prepare(ptrdiff_t item, float* local) const;
  void attend_rows(ptrdiff_t item, float* local) const;
  void attend(ptrdiff_t item, float* local) const;
  void attend_part(ptrdiff_t item, float* local) const;
  void combine(ptrdiff_t item, float* local) const;
  void pack_context(ptrdiff_t item, float* local) const;
  void merge(ptrdiff_t item, float* local) const;

  const Plan& plan_;
  const Heads heads_;
  float* const scratch_;
  const Pool& pool_;
  Product products_[3], merge_;  // with their places
  size_t most_busy_ = 0;
};

/// Does the items of a step until none is left. As many of these work as there are workers; one
/// that comes late finds less to do, or nothing.
///
/// A worker takes its own share first, and then what is left of the others'. With the same share of
/// the heads in each step, what one step wrote is in the cache of the core that reads it next.
struct Run::Crew {
  const Run& run;
  Step step;
  const Ranges& ranges;
  ptrdiff_t workers;
  Share* shares;
  std::atomic<size_t> busy{0};

  /// The item at a place in a worker's share, or -1.
  ptrdiff_t item(ptrdiff_t worker, ptrdiff_t place) const {
    ptrdiff_t begin = 0;
    for (int i = 0; i < ranges.count; ++i) {
      const ptrdiff_t items = ranges.end[i] - begin;
      const ptrdiff_t first = items * worker / workers, last = items * (worker + 1) / workers;
      if (place < last - first) return begin + first + place;
      place -= last - first;
      begin = ranges.end[i];
    }
    return -1;
  }
  static void work(void* self, size_t worker) {
    Crew& crew = *static_cast<Crew*>(self);
    const Plan& plan = crew.run.plan_;
    float* local = crew.run.scratch_ + plan.at.local + worker * plan.local_size;
    bool idle = true;
    for (ptrdiff_t turn = 0; turn < crew.workers; ++turn) {
      const ptrdiff_t owner = (static_cast<ptrdiff_t>(worker) + turn) % crew.workers;
      std::atomic<ptrdiff_t>& next = crew.shares[owner].next;
      for (;;) {
        const ptrdiff_t item = crew.item(owner, next.fetch_add(1, std::memory_order_relaxed));
        if (item < 0) break;
        if (idle) crew.busy.fetch_add(1, std::memory_order_relaxed);
        idle = false;
        (crew.run.*crew.step)(item, local);
      }
    }
  }
};

Run::Run(const Plan& plan, const Outputs& outputs, float* scratch, const Pool& pool)
    : plan_(plan),
      heads_(plan, outputs, scratch),
      scratch_(scratch),
      pool_(pool),
      merge_(plan.merge) {
  for (int i = 0; i < plan.product_count; ++i) {
    products_[i] = plan.products[i];
    place(&products_[i], scratch + products_[i].scratch);
  }
  merge_.gemm.a = scratch + plan.at.context;
  place(&merge_, outputs.output);
}

void Run::place(Product* p, float* c) const {
  p->gemm.c = c;
  p->gemm.packed = p->is_packed ? scratch_ + p->packed_scratch : nullptr;
}

void Run::hand_over(Step step, const Ranges& ranges, double work) {
  const ptrdiff_t items = ranges.items();
  const ptrdiff_t workers = plan_.workers < items ? plan_.workers : items;
  const bool shared = items > 1 && work >= kWorthSharing;
  if (shared && most_busy_ == 0) most_busy_ = 1;
  if (!shared || workers <= 1) {
    float* local = scratch_ + plan_.at.local;
    for (ptrdiff_t item = 0; item < items; ++item) (this->*step)(item, local);
    return;
  }
  Share* shares = reinterpret_cast<Share*>(scratch_ + plan_.at.shares);
  for (ptrdiff_t i = 0; i < workers; ++i) new (&shares[i]) Share{};
  Crew crew = {*this, step, ranges, workers, shares};
  pool_.run(pool_.host, Crew::work, static_cast<size_t>(workers), &crew);
  const size_t busy = crew.busy.load(std::memory_order_relaxed);
  if (busy > most_busy_) most_busy_ = busy;
}

// ---- Steps

/// Item: first the pieces of the first packed product, then those of the next.
void Run::pack(ptrdiff_t item, float*) const {
  for (int i = 0; i < plan_.product_count; ++i) {
    const Product& p = products_[i];
    const ptrdiff_t items = p.pack_items();
    if (item < items) {
      return plan_.kernels.pack(p.gemm, scratch_ + p.packed_scratch, item * kPackRows);
    }
    item -= items;
  }
}

/// Item: first the pieces of the first product, then those of the next.
void Run::project(ptrdiff_t item, float*) const {
  const Product* p = products_;
  while (item >= p->items()) item -= p++->items();
  plan_.kernels.gemm(p->item(item));
}

/// Item: first the query's (batch, rows) pieces, then the key's.
void Run::measure(ptrdiff_t item, float*) const {
  const ptrdiff_t query_items =
      plan_.attributes.q_norm_over_heads ? plan_.batch * pieces(plan_.query.seq, kMeasureRows) : 0;
  const bool of_query = item < query_items;
  const ptrdiff_t seq = of_query ? plan_.query.seq : plan_.key.seq;
  if (!of_query) item -= query_items;
  const ptrdiff_t per_batch = pieces(seq, kMeasureRows);
  const ptrdiff_t row = item % per_batch * kMeasureRows, left = seq - row;
  heads_.measure(of_query, item / per_batch, row, left < kMeasureRows ? left : kMeasureRows);
}

void Run::prepare(ptrdiff_t item, float* local) const {
  heads_.prepare(item / plan_.kv_heads, item % plan_.kv_heads, local);
}

void Run::attend_rows(ptrdiff_t item, float* local) const {
  const ptrdiff_t row = item % attend_pieces() * kAttendRows, left = plan_.q_seq - row;
  const ptrdiff_t head = item / attend_pieces() % plan_.query.heads;
  const ptrdiff_t batch = item / attend_pieces() / plan_.query.heads;
  heads_.attend(batch, head, row, left < kAttendRows ? left : kAttendRows, local);
}

void Run::attend(ptrdiff_t item, float* local) const {
  prepare(item, local);
  heads_.attend_group(item / plan_.kv_heads, item % plan_.kv_heads, local);
}

void Run::attend_part(ptrdiff_t item, float* local) const {
  const ptrdiff_t index = item / plan_.parts;
  heads_.attend_part(index / plan_.kv_heads, index % plan_.kv_heads, item % plan_.parts, local);
}

void Run::combine(ptrdiff_t item, float* local) const {
  heads_.combine_parts(item / plan_.kv_heads, item % plan_.kv_heads, local);
}

void Run::pack_context(ptrdiff_t item, float*) const {
  plan_.kernels.pack(merge_.gemm, scratch_ + merge_.packed_scratch, item * kPackRows);
}

void Run::merge(ptrdiff_t item, float*) const { plan_.kernels.gemm(merge_.item(item)); }

// ---- Their order

/// The items of the projections. Where a joint product is cut by columns only, Q's, K's and V's are
/// ranges of their own, so that a worker has the same heads of each.
Ranges Run::project_ranges() const {
  Ranges r;
  ptrdiff_t begin = 0;
  for (int i = 0; i < plan_.product_count; ++i) {
    const Product& p = products_[i];
    if (p.row_pieces == 1 && plan_.signature.has(kQkvWeight)) {
      const ptrdiff_t piece = p.panel_piece * kPanel;
      r.add(plan_.extent(kQColumns) / piece);
      r.add((plan_.extent(kQColumns) + plan_.extent(kKColumns)) / piece);
    }
    begin += p.items();
    r.add(begin);
  }
  return r;
}

void Run::project_all() {
  double work = 0, pack_work = 0;
  ptrdiff_t pack_items = 0;
  for (int i = 0; i < plan_.product_count; ++i) {
    work += products_[i].work();
    pack_items += products_[i].pack_items();
    pack_work += products_[i].pack_work();
  }
  hand_over(&Run::pack, Ranges(pack_items), pack_work);
  hand_over(&Run::project, project_ranges(), work);
}

void Run::measure_all() {
  const Attributes& a = plan_.attributes;
  ptrdiff_t rows = 0;
  if (a.q_norm_over_heads) rows += plan_.batch * pieces(plan_.query.seq, kMeasureRows);
  if (a.k_norm_over_heads) rows += plan_.batch * pieces(plan_.key.seq, kMeasureRows);
  hand_over(&Run::measure, Ranges(rows), static_cast<double>(rows));
}

void Run::attend_all() {
  const ptrdiff_t kv_items = plan_.batch * plan_.kv_heads;
  const double work = plan_.attend_work();
  if (plan_.parts > 0) {
    hand_over(&Run::attend_part, Ranges(kv_items * plan_.parts), work);
    const double results = static_cast<double>(kv_items * plan_.parts * plan_.part_size());
    const double combining = microseconds(results, results * sizeof(float));
    if (plan_.parts > 1) hand_over(&Run::combine, Ranges(kv_items), combining);
  } else if (plan_.is_even(kv_items)) {
    hand_over(&Run::attend, Ranges(kv_items), work);
  } else {
    hand_over(&Run::prepare, Ranges(kv_items), work);
    hand_over(&Run::attend_rows, Ranges(kv_items * plan_.group * attend_pieces()), work);
  }
}

void Run::merge_all() {
  if (!plan_.has_merge) return;
  hand_over(&Run::pack_context, Ranges(merge_.pack_items()), merge_.pack_work());
  hand_over(&Run::merge, Ranges(merge_.items()), merge_.work());
}

void Run::all() {
  heads_.fill_tables();
  project_all();
  measure_all();
  attend_all();
  merge_all();
}

}  // namespace

size_t run_plan(const Plan& plan, const Outputs& outputs, void* scratch, const Pool& pool) {
  Run run(plan, outputs, static_cast<float*>(scratch), pool);
  run.all();
  return run.most_busy();
}

}  // namespace onnx_fuse
