// The steps of a call, one after the other, each shared by the threads of a host's pool.
//
// All steps are handed over at once, since a hand-over takes the host as long as a small step does.
// From one step to the next the workers wait for each other, on a counter.
#pragma once

#include <sched.h>
#include <stddef.h>

#include <atomic>
#include <new>

namespace onnx_fuse {

/// The host's thread pool: runs fn(user, i) for all i < count and returns when all are done.
struct Pool {
  void* host;
  void (*run)(void* host, void (*fn)(void* user, size_t i), size_t count, void* user);
};

/// Items of a step in ranges, each of which is shared evenly.
struct Ranges {
  ptrdiff_t end[3];  // one past the last item of each
  ptrdiff_t count = 0;

  Ranges() {}  // which leaves `end` as it is
  explicit Ranges(ptrdiff_t items) { add(items); }
  void add(ptrdiff_t one_past_last) { end[count++] = one_past_last; }
  ptrdiff_t items() const { return count > 0 ? end[count - 1] : 0; }

  /// The item at a place in a worker's share, or -1.
  ptrdiff_t item(ptrdiff_t worker, ptrdiff_t workers, ptrdiff_t place) const {
    ptrdiff_t begin = 0;
    for (ptrdiff_t i = 0; i < count; ++i) {
      const ptrdiff_t items = end[i] - begin;
      const ptrdiff_t first = items * worker / workers, last = items * (worker + 1) / workers;
      if (place < last - first) return begin + first + place;
      place -= last - first;
      begin = end[i];
    }
    return -1;
  }
};

/// A number that several workers count up, on a cache line of its own.
struct alignas(64) Counter {
  std::atomic<ptrdiff_t> value{0};
};

constexpr int kMostSteps = 8;

/// Bytes of the counters of a crew of so many workers.
constexpr ptrdiff_t counter_bytes(ptrdiff_t workers) {
  return kMostSteps * (workers + 1) * static_cast<ptrdiff_t>(sizeof(Counter));
}

/// Lets the other thread of a core work while this one looks again and again.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Does steps whose items are methods of an Owner.
///
/// A worker takes its own share of a step first, and then what is left of the others'. With the
/// same share of the heads in each step, what one step wrote is in the cache of the core that reads
/// it next. Then it waits for the items that others have taken, and for nobody who has taken none:
/// the host may do all this in fewer threads, one worker after the other. One that comes late finds
/// less to do, or nothing.
template <typename Owner>
class Crew {
 public:
  /// `memory` holds counter_bytes(workers).
  Crew(const Owner& owner, ptrdiff_t workers, void* memory)
      : owner_(owner), workers_(workers), counters_(static_cast<Counter*>(memory)) {}

  /// Adds a step, whose items are done by a worker with what is its own. One that isn't shared is
  /// done by the first who comes.
  void add(void (Owner::*item)(ptrdiff_t item, ptrdiff_t worker) const, const Ranges& ranges,
           bool is_shared) {
    if (ranges.items() == 0) return;
    Step& step = steps_[count_++];
    step.item = item;
    step.is_shared = is_shared;
    if (is_shared && ranges.items() > most_items_) most_items_ = ranges.items();
    for (ptrdiff_t i = 0; i < ranges.count; ++i) step.ranges.add(ranges.end[i]);
  }

  /// Returns how many workers did anything.
  size_t run(const Pool& pool) {
    if (workers_ > most_items_) workers_ = most_items_;
    if (workers_ == 1) {
      for (int i = 0; i < count_; ++i) take_all(steps_[i], 0);
      return 1;
    }
    for (ptrdiff_t i = 0; i < count_ * (workers_ + 1); ++i) new (&counters_[i]) Counter;
    pool.run(pool.host, enter, static_cast<size_t>(workers_), this);
    return busy_.load(std::memory_order_relaxed);
  }

 private:
  struct Step {
    void (Owner::*item)(ptrdiff_t item, ptrdiff_t worker) const;
    Ranges ranges;
    bool is_shared;
  };
  static constexpr int kSpins = 200;  // turns of waiting, a few us, after which others may run

  static void enter(void* self, size_t worker) {
    static_cast<Crew*>(self)->work(static_cast<ptrdiff_t>(worker));
  }
  void work(ptrdiff_t worker) {
    bool idle = true;
    for (int i = 0; i < count_; ++i) {
      Counter* const taken = counters_ + i * (workers_ + 1);
      std::atomic<ptrdiff_t>& done = taken[workers_].value;
      const ptrdiff_t items = steps_[i].ranges.items();
      if (done.load(std::memory_order_acquire) == items) continue;  // a late one's way is short
      const ptrdiff_t mine = take_part(steps_[i], taken, worker);
      if (mine > 0) done.fetch_add(mine, std::memory_order_release);
      if (mine > 0 && idle) busy_.fetch_add(1, std::memory_order_relaxed);
      idle = idle && mine == 0;
      // After the last step the host waits.
      if (i + 1 < count_) wait_for(done, items);
    }
  }

  ptrdiff_t take_all(const Step& step, ptrdiff_t worker) const {
    const ptrdiff_t items = step.ranges.items();
    for (ptrdiff_t item = 0; item < items; ++item) (owner_.*step.item)(item, worker);
    return items;
  }

  /// Returns how many items this worker did; `taken` counts those of each worker's share.
  ptrdiff_t take_part(const Step& step, Counter* taken, ptrdiff_t worker) const {
    if (!step.is_shared) {
      if (taken->value.fetch_add(1, std::memory_order_relaxed) > 0) return 0;
      return take_all(step, worker);
    }
    ptrdiff_t count = 0;
    for (ptrdiff_t turn = 0; turn < workers_; ++turn) {
      const ptrdiff_t owner = (worker + turn) % workers_;
      for (;; ++count) {
        const ptrdiff_t place = taken[owner].value.fetch_add(1, std::memory_order_relaxed);
        const ptrdiff_t item = step.ranges.item(owner, workers_, place);
        if (item < 0) break;
        (owner_.*step.item)(item, worker);
      }
    }
    return count;
  }

  static void wait_for(const std::atomic<ptrdiff_t>& done, ptrdiff_t items) {
    for (int turn = 0; done.load(std::memory_order_acquire) < items; ++turn) {
      if (turn < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

  const Owner& owner_;
  ptrdiff_t workers_;
  ptrdiff_t most_items_ = 1;  // of a step that is shared
  Counter* const counters_;   // for each step: items taken of each worker's share, items done
  Step steps_[kMostSteps];
  int count_ = 0;
  std::atomic<size_t> busy_{0};
};

}  // namespace onnx_fuse
