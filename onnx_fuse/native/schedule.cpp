// How the steps of a block are handed to threads.
#include <atomic>
#include <new>

#include "block.h"

namespace onnx_fuse {
namespace {

constexpr ptrdiff_t kMeasureRows = 16;  // rows of a piece of a measuring step
constexpr ptrdiff_t kAttendRows = 48;   // query rows of a piece: K and V pass L2 once for them

/// The items of one worker, which is the first to take them: the same part of each range.
struct alignas(64) Share {
  std::atomic<ptrdiff_t> next;
};

/// Runs the items of a step until none is left. As many of these run as there are workers; one that
/// comes late finds less to do, or nothing.
///
/// A worker takes its own share first, and then what is left of the others'. With the same share of
/// the heads in each step, what one step wrote is in the cache of the core that reads it next.
struct Crew {
  Block* block;
  void (*step)(Block&, ptrdiff_t, float*);
  const Ranges& ranges;
  ptrdiff_t workers;
  Share* shares;
  float* local;  // of worker 0
  size_t local_size;
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
    bool idle = true;
    for (ptrdiff_t turn = 0; turn < crew.workers; ++turn) {
      const ptrdiff_t owner = (static_cast<ptrdiff_t>(worker) + turn) % crew.workers;
      std::atomic<ptrdiff_t>& next = crew.shares[owner].next;
      for (;;) {
        const ptrdiff_t item = crew.item(owner, next.fetch_add(1, std::memory_order_relaxed));
        if (item < 0) break;
        if (idle) crew.busy.fetch_add(1, std::memory_order_relaxed);
        idle = false;
        crew.step(*crew.block, item, crew.local + worker * crew.local_size);
      }
    }
  }
};

}  // namespace

void Block::hand_over(Step step, const Ranges& ranges, double work, const Pool& pool) {
  float* local = scratch_ + local_;
  const ptrdiff_t items = ranges.items();
  const size_t most = items > 0 ? static_cast<size_t>(items) : 0;
  const size_t workers = workers_ < most ? workers_ : most;
  const bool shared = most > 1 && work >= kWorthSharing;
  if (shared && most_busy_ == 0) most_busy_ = 1;
  if (!shared || workers <= 1) {
    for (ptrdiff_t item = 0; item < items; ++item) step(*this, item, local);
    return;
  }
  Share* shares = reinterpret_cast<Share*>(scratch_ + shares_);
  for (size_t i = 0; i < workers; ++i) new (&shares[i]) Share{};
  Crew crew = {this, step, ranges, static_cast<ptrdiff_t>(workers), shares, local, local_size_};
  pool.run(pool.host, Crew::work, workers, &crew);
  const size_t busy = crew.busy.load(std::memory_order_relaxed);
  if (busy > most_busy_) most_busy_ = busy;
}

/// Item: first the pieces of the first packed product, then those of the next.
void Block::pack_step(Block& b, ptrdiff_t item, float*) {
  for (const Product& p : b.products_) {
    const ptrdiff_t items = p.pack_items();
    if (item < items) {
      b.kernels_.pack(p.gemm, b.scratch_ + p.packed_scratch, item * kPackRows);
      return;
    }
    item -= items;
  }
}

void Block::pack_context_step(Block& b, ptrdiff_t item, float*) {
  b.kernels_.pack(b.merge_.gemm, b.scratch_ + b.merge_.packed_scratch, item * kPackRows);
}

void Block::project_step(Block& b, ptrdiff_t item, float*) {
  const Product* p = b.products_;
  while (item >= p->items()) item -= p++->items();
  const ptrdiff_t row = item / p->panel_pieces * p->row_piece;
  const ptrdiff_t panel = item % p->panel_pieces * p->panel_piece;
  b.kernels_.gemm(slice(p->gemm, row, p->row_piece, panel, p->panel_piece));
}

void Block::merge_step(Block& b, ptrdiff_t item, float*) {
  const Product& p = b.merge_;
  const ptrdiff_t row = item / p.panel_pieces * p.row_piece;
  const ptrdiff_t panel = item % p.panel_pieces * p.panel_piece;
  b.kernels_.gemm(slice(p.gemm, row, p.row_piece, panel, p.panel_piece));
}

/// Item: first the query's (batch, rows) pieces, then the key's.
void Block::measure_step(Block& b, ptrdiff_t item, float*) {
  const Attributes& a = b.attributes_;
  const ptrdiff_t query_items =
      a.q_norm_over_heads ? b.batch_ * pieces(b.query_.seq, kMeasureRows) : 0;
  const bool of_query = item < query_items;
  const Stream& s = of_query ? b.query_ : b.key_;
  if (!of_query) item -= query_items;
  const ptrdiff_t per_batch = pieces(s.seq, kMeasureRows);
  const ptrdiff_t batch = item / per_batch, row = item % per_batch * kMeasureRows;
  HeadRows rows = s.of(batch, 0);
  rows.data += row * rows.row_stride;
  float* statistics = b.scratch_ + (of_query ? b.query_statistics_ : b.key_statistics_);
  b.kernels_.row_statistics(
      {rows, s.head_stride, s.heads, s.dim, s.seq - row < kMeasureRows ? s.seq - row : kMeasureRows,
       of_query ? a.q_norm : a.k_norm, of_query ? a.q_norm_epsilon : a.k_norm_epsilon,
       statistics + 2 * (batch * s.seq + row)});
}

void Block::prepare_step(Block& b, ptrdiff_t item, float* local) {
  b.prepare(item / b.kv_heads_, item % b.kv_heads_, local);
}

ptrdiff_t Block::attend_pieces() const { return pieces(q_seq_, kAttendRows); }

void Block::attend_rows_step(Block& b, ptrdiff_t item, float* local) {
  const ptrdiff_t row = item % b.attend_pieces() * kAttendRows;
  const ptrdiff_t head = item / b.attend_pieces() % b.query_.heads;
  const ptrdiff_t batch = item / b.attend_pieces() / b.query_.heads;
  const ptrdiff_t left = b.q_seq_ - row;
  b.attend(batch, head, row, left < kAttendRows ? left : kAttendRows, local);
}

void Block::attend_step(Block& b, ptrdiff_t item, float* local) {
  const ptrdiff_t batch = item / b.kv_heads_, kv_head = item % b.kv_heads_;
  b.prepare(batch, kv_head, local);
  b.attend_group(batch, kv_head, local);
}

void Block::attend_part_step(Block& b, ptrdiff_t item, float* local) {
  const ptrdiff_t index = item / b.parts_;
  b.attend_part(index / b.kv_heads_, index % b.kv_heads_, item % b.parts_, local);
}

void Block::combine_step(Block& b, ptrdiff_t item, float* local) {
  b.combine_parts(item / b.kv_heads_, item % b.kv_heads_, local);
}

double Block::attend_work() const {
  const double rows = static_cast<double>(batch_ * query_.heads * q_seq_);
  const double total = static_cast<double>(total_seq_);
  const double dims = static_cast<double>(query_.dim + value_.dim);
  const double read = static_cast<double>(batch_ * kv_heads_) * total * dims * sizeof(float);
  return microseconds(rows * total * dims, read);
}

/// Gives the parts of the scratch their addresses.
void Block::place(const Outputs& outputs, float* scratch) {
  outputs_ = outputs;
  scratch_ = scratch;
  Stream* const streams[] = {&query_, &key_, &value_};
  for (Stream* s : streams) {
    if (s->projected) s->data = scratch + s->scratch;
  }
  for (int i = 0; i < product_count_; ++i) {
    products_[i].gemm.c = scratch + products_[i].scratch;
    place_packed(&products_[i]);
  }
  merge_.gemm.a = scratch + context_;
  merge_.gemm.c = outputs.output;
  place_packed(&merge_);
}

void Block::place_packed(Product* p) {
  p->gemm.packed = p->is_packed ? scratch_ + p->packed_scratch : nullptr;
}

/// The items of the projections. Where a joint product is cut by columns only, Q's, K's and V's are
/// ranges of their own, so that a worker has the same heads of each.
Ranges Block::project_ranges() const {
  Ranges r;
  ptrdiff_t begin = 0;
  for (int i = 0; i < product_count_; ++i) {
    const Product& p = products_[i];
    if (p.row_pieces == 1 && signature_.has(kQkvWeight)) {
      const ptrdiff_t piece = p.panel_piece * kPanel;
      r.add(extent(kQColumns) / piece);
      r.add((extent(kQColumns) + extent(kKColumns)) / piece);
    }
    begin += p.items();
    r.add(begin);
  }
  return r;
}

size_t Block::run(const Outputs& outputs, void* scratch, const Pool& pool) {
  place(outputs, static_cast<float*>(scratch));
  fill_tables();
  double project_work = 0, pack_work = 0;
  ptrdiff_t pack_items = 0;
  for (int i = 0; i < product_count_; ++i) {
    project_work += products_[i].work();
    pack_items += products_[i].pack_items();
    pack_work += products_[i].pack_work();
  }
  hand_over(pack_step, Ranges(pack_items), pack_work, pool);
  hand_over(project_step, project_ranges(), project_work, pool);
  ptrdiff_t rows = 0;
  if (attributes_.q_norm_over_heads) rows += batch_ * pieces(query_.seq, kMeasureRows);
  if (attributes_.k_norm_over_heads) rows += batch_ * pieces(key_.seq, kMeasureRows);
  hand_over(measure_step, Ranges(rows), static_cast<double>(rows), pool);
  const ptrdiff_t kv_items = batch_ * kv_heads_;
  if (parts_ > 0) {
    hand_over(attend_part_step, Ranges(kv_items * parts_), attend_work(), pool);
    const double results = static_cast<double>(kv_items * parts_ * part_size());
    const double combining = microseconds(results, results * sizeof(float));
    if (parts_ > 1) hand_over(combine_step, Ranges(kv_items), combining, pool);
  } else if (is_even(kv_items)) {
    hand_over(attend_step, Ranges(kv_items), attend_work(), pool);
  } else {
    hand_over(prepare_step, Ranges(kv_items), attend_work(), pool);
    hand_over(attend_rows_step, Ranges(kv_items * group_ * attend_pieces()), attend_work(), pool);
  }
  hand_over(pack_context_step, Ranges(merge_.pack_items()), merge_.pack_work(), pool);
  if (has_merge_) hand_over(merge_step, Ranges(merge_.items()), merge_.work(), pool);
  return most_busy_;
}

}  // namespace onnx_fuse
