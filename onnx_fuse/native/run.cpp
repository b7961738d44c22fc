#include "run.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kMeasureRows = 16;  // rows of a piece of a measuring step
constexpr ptrdiff_t kAttendRows = 48;   // query rows of a piece: K and V pass L2 once for them

/// One run of a plan. A step does one of its items with the scratch of a worker.
class Run {
 public:
  Run(const Plan& plan, float* scratch);
  /// Returns how many workers took part.
  size_t all(const Pool& pool);

 private:
  void place(Product* p, float* c) const;
  void add(void (Run::*item)(ptrdiff_t, ptrdiff_t) const, const Ranges& ranges, double work);
  Ranges project_ranges() const;
  void add_project();
  void add_measure();
  void add_attend();
  void add_merge();
  ptrdiff_t attend_pieces() const { return pieces(plan_.q_seq, kAttendRows); }
  float* local(ptrdiff_t worker) const {
    return scratch_ + plan_.at.local + static_cast<size_t>(worker) * plan_.local_size;
  }
  KvHead kv_head(ptrdiff_t index, ptrdiff_t worker) const {
    return {index, index / plan_.kv_heads, index % plan_.kv_heads, local(worker)};
  }

  void pack(ptrdiff_t item, ptrdiff_t) const;
  void project(ptrdiff_t item, ptrdiff_t) const;
  void measure(ptrdiff_t item, ptrdiff_t) const;
  void prepare(ptrdiff_t item, ptrdiff_t worker) const;
  void attend_rows(ptrdiff_t item, ptrdiff_t worker) const;
  void attend(ptrdiff_t item, ptrdiff_t worker) const;
  void attend_part(ptrdiff_t item, ptrdiff_t worker) const;
  void combine(ptrdiff_t item, ptrdiff_t worker) const;
  void pack_context(ptrdiff_t item, ptrdiff_t) const;
  void merge(ptrdiff_t item, ptrdiff_t) const;

  const Plan& plan_;
  const Heads heads_;
  float* const scratch_;
  Product products_[3], merge_;  // with their places
  Crew<Run> crew_;
};

Run::Run(const Plan& plan, float* scratch)
    : plan_(plan),
      heads_(plan, scratch),
      scratch_(scratch),
      merge_(plan.merge),
      crew_(*this, plan.workers, scratch + plan.at.counters) {
  for (int i = 0; i < plan.product_count; ++i) {
    products_[i] = plan.products[i];
    place(&products_[i], scratch + products_[i].scratch);
  }
  merge_.gemm.a = scratch + plan.at.context;
  place(&merge_, plan.outputs.output);
}

void Run::place(Product* p, float* c) const {
  p->gemm.c = c;
  p->gemm.packed = p->is_packed ? scratch_ + p->packed_scratch : nullptr;
}

/// Adds a step of so many microseconds.
void Run::add(void (Run::*item)(ptrdiff_t, ptrdiff_t) const, const Ranges& ranges, double work) {
  crew_.add(item, ranges, work >= kWorthMeeting);
}

// ---- Steps

/// Item: first the pieces of the first packed product, then those of the next.
void Run::pack(ptrdiff_t item, ptrdiff_t) const {
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
void Run::project(ptrdiff_t item, ptrdiff_t) const {
  const Product* p = products_;
  while (item >= p->items()) item -= p++->items();
  plan_.kernels.gemm(p->item(item));
}

/// Item: first the query's (batch, rows) pieces, then the key's.
void Run::measure(ptrdiff_t item, ptrdiff_t) const {
  const ptrdiff_t query_items =
      plan_.attributes.q_norm_over_heads ? plan_.batch * pieces(plan_.query.seq, kMeasureRows) : 0;
  const bool of_query = item < query_items;
  const ptrdiff_t seq = of_query ? plan_.query.seq : plan_.key.seq;
  if (!of_query) item -= query_items;
  const ptrdiff_t per_batch = pieces(seq, kMeasureRows);
  const ptrdiff_t row = item % per_batch * kMeasureRows, left = seq - row;
  heads_.measure(of_query, item / per_batch, row, smaller(left, kMeasureRows));
}

void Run::prepare(ptrdiff_t item, ptrdiff_t worker) const { heads_.prepare(kv_head(item, worker)); }

void Run::attend_rows(ptrdiff_t item, ptrdiff_t worker) const {
  const ptrdiff_t row = item % attend_pieces() * kAttendRows, left = plan_.q_seq - row;
  const ptrdiff_t head = item / attend_pieces();  // among the query heads of all batches
  heads_.attend(kv_head(head / plan_.group, worker), head % plan_.group, row,
                smaller(left, kAttendRows));
}

void Run::attend(ptrdiff_t item, ptrdiff_t worker) const {
  const KvHead kv = kv_head(item, worker);
  heads_.prepare(kv);
  heads_.attend_group(kv);
}

void Run::attend_part(ptrdiff_t item, ptrdiff_t worker) const {
  heads_.attend_part(kv_head(item / plan_.parts, worker), item % plan_.parts);
}

void Run::combine(ptrdiff_t item, ptrdiff_t worker) const {
  heads_.combine_parts(kv_head(item, worker));
}

void Run::pack_context(ptrdiff_t item, ptrdiff_t) const {
  plan_.kernels.pack(merge_.gemm, scratch_ + merge_.packed_scratch, item * kPackRows);
}

void Run::merge(ptrdiff_t item, ptrdiff_t) const { plan_.kernels.gemm(merge_.item(item)); }

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

void Run::add_project() {
  double work = 0, pack_work = 0;
  ptrdiff_t pack_items = 0;
  for (int i = 0; i < plan_.product_count; ++i) {
    work += products_[i].work(plan_.pace);
    pack_items += products_[i].pack_items();
    pack_work += products_[i].pack_work();
  }
  add(&Run::pack, Ranges(pack_items), pack_work);
  add(&Run::project, project_ranges(), work);
}

void Run::add_measure() {
  const Attributes& a = plan_.attributes;
  ptrdiff_t rows = 0;
  if (a.q_norm_over_heads) rows += plan_.batch * pieces(plan_.query.seq, kMeasureRows);
  if (a.k_norm_over_heads) rows += plan_.batch * pieces(plan_.key.seq, kMeasureRows);
  add(&Run::measure, Ranges(rows), static_cast<double>(rows));
}

void Run::add_attend() {
  const ptrdiff_t kv_items = plan_.batch * plan_.kv_heads;
  const double work = plan_.attend_work();
  if (plan_.parts > 0) {
    add(&Run::attend_part, Ranges(kv_items * plan_.parts), work);
    const double results = static_cast<double>(kv_items * plan_.parts * plan_.part_size());
    const double combining = plan_.pace.microseconds(results, results * sizeof(float));
    if (plan_.parts > 1) add(&Run::combine, Ranges(kv_items), combining);
  } else if (plan_.is_even(kv_items)) {
    add(&Run::attend, Ranges(kv_items), work);
  } else {
    add(&Run::prepare, Ranges(kv_items), work);
    add(&Run::attend_rows, Ranges(kv_items * plan_.group * attend_pieces()), work);
  }
}

void Run::add_merge() {
  if (!plan_.has_merge) return;
  add(&Run::pack_context, Ranges(merge_.pack_items()), merge_.pack_work());
  add(&Run::merge, Ranges(merge_.items()), merge_.work(plan_.pace));
}

size_t Run::all(const Pool& pool) {
  heads_.fill_tables();
  add_project();
  add_measure();
  add_attend();
  add_merge();
  return crew_.run(pool);
}

}  // namespace

size_t run_plan(const Plan& plan, void* scratch, const Pool& pool) {
  Run run(plan, static_cast<float*>(scratch));
  const size_t busy = run.all(pool);
  return plan.is_worth_sharing ? busy : 0;
}

}  // namespace onnx_fuse
