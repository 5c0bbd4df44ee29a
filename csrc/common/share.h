// A range shared out among threads, where one that was woken late or is slowed down is relieved by the others.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace qcompile {

// Calls work(begin, end) for pieces that cover [0, count), on as many threads as have at least `grain` each. A thread goes
// through a share of its own, from the front, so that it reads memory in order, and then takes pieces that others have not come
// to. Pieces are multiples of `unit`, but for the last one of a share.
template <class Work>
void share_out(int64_t count, int64_t grain, int64_t unit, const Work& work) {
  constexpr int64_t kPieces = 32;  // of a share; with 8 a product of 0.3 ms takes 1 to 2 % longer on two threads
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (count + grain - 1) / grain);
  if (threads <= 1) {
    if (count > 0) work(int64_t{0}, count);
    return;
  }
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t i = 0; i < threads; ++i) {
    shares[static_cast<size_t>(i)].next = count * i / threads;
    shares[static_cast<size_t>(i)].end = count * (i + 1) / threads;
  }
  const int64_t piece = unit * std::max<int64_t>(1, count / threads / kPieces / unit);
  // Inside another parallel loop one thread is given all of this range, and goes through every share.
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t own = first; own < last; ++own) {
      for (int64_t turn = 0; turn < threads; ++turn) {
        Share& share = shares[static_cast<size_t>((own + turn) % threads)];
        for (;;) {
          const int64_t begin = share.next.fetch_add(piece, std::memory_order_relaxed);
          if (begin >= share.end) break;
          work(begin, std::min(begin + piece, share.end));
        }
      }
    }
  });
}

}  // namespace qcompile
