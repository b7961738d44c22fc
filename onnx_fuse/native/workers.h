// How many threads a node's calls are cut for.
#pragma once

#include <stddef.h>

#include <atomic>

namespace onnx_fuse {

/// The runtime doesn't tell how many threads a session has: it is learned from its calls.
class Workers {
 public:
  static constexpr unsigned kEnough = 64;     // calls that tell how many there are
  static constexpr unsigned kLookAgain = 64;  // calls after which all are asked again

  explicit Workers(size_t processors) : processors_(processors) {}

  /// As many as there are processors, and then as many as were seen at work at once. Now and then a
  /// call is cut for all again: threads that slept come late, and are not seen in a short call.
  size_t count() const {
    const unsigned calls = calls_.load(std::memory_order_relaxed);
    if (calls < kEnough || calls % kLookAgain == 0) return processors_;
    return most_.load(std::memory_order_relaxed);
  }

  /// `seen` threads were at work at once in a call; 0, which tells nothing: it wasn't worth
  /// sharing.
  void observe(size_t seen) {
    if (seen == 0) return;
    calls_.fetch_add(1, std::memory_order_relaxed);
    size_t most = most_.load(std::memory_order_relaxed);
    while (seen > most && !most_.compare_exchange_weak(most, seen, std::memory_order_relaxed)) {
    }
  }

 private:
  const size_t processors_;
  std::atomic<size_t> most_{1};
  std::atomic<unsigned> calls_{0};
};

}  // namespace onnx_fuse
