// How an operation of a group is started and waited for.
#pragma once

#include "interrupt.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace lcl {

using Work = c10::intrusive_ptr<c10d::Work>;

// Operations started by this process, and nanoseconds that its threads have waited for their completion. Read from any thread.
inline std::atomic<uint64_t> started_operations{0};
inline std::atomic<uint64_t> waited_nanoseconds{0};

// Counts the time of its life as waiting.
class Waiting {
public:
  Waiting() : since_(std::chrono::steady_clock::now()) {}
  explicit Waiting(std::chrono::steady_clock::time_point since) : since_(since) {}
  Waiting(const Waiting &) = delete;
  Waiting &operator=(const Waiting &) = delete;
  ~Waiting() {
    const auto waited = std::chrono::steady_clock::now() - since_;
    waited_nanoseconds += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count());
  }

private:
  std::chrono::steady_clock::time_point since_;
};

// Starts an operation. libtorch's flight recorder keeps the state of all groups of a process in one map without a lock, so that groups of
// several threads (tests, the self-test) must not start operations at once.
template <typename Start> Work start(Start &&body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  ++started_operations;
  return body();
}

inline void check_in_time(bool is_done, std::chrono::milliseconds timeout) {
  TORCH_CHECK(is_done, "not complete after ", timeout.count(), " ms");
}

// Waits for a collective of Gloo, for the interruption, or for the time-out.
inline void complete_on_host(const std::shared_ptr<Interrupt> &interrupt, const Work &work, std::chrono::milliseconds timeout) {
  const Waiting waiting;
  const auto outcome = std::make_shared<Outcome>();
  const Watch watch(interrupt, [outcome](const std::exception_ptr &error) { outcome->settle(error); });
  work->getFuture()->addCallback(
      [outcome](c10::ivalue::Future &future) { outcome->settle(future.hasError() ? future.exception_ptr() : nullptr); });
  check_in_time(outcome->wait(timeout), timeout);
}

// The same for a send or receive of Gloo, which has no future.
inline void complete_transfer(const std::shared_ptr<Interrupt> &interrupt, const Work &work, std::chrono::milliseconds timeout) {
  const Waiting waiting;
  const Watch watch(interrupt, [work](const std::exception_ptr &) { work->abort(); });
  if (!work->wait(timeout)) {
    interrupt->check();
    TORCH_CHECK(false, "the operation was aborted");
  }
}

// Waits until the host has seen the operation's event and the communicator has no error: only then may anything be computed from it.
inline void complete_on_device(const std::shared_ptr<Interrupt> &interrupt, c10d::Backend &backend, const Work &work, std::chrono::milliseconds timeout) {
  const Waiting waiting;
  // Short operations take some tens of microseconds; long ones need no better than a millisecond.
  constexpr std::chrono::microseconds shortest(20);
  constexpr std::chrono::microseconds longest(1000);
  const auto end = std::chrono::steady_clock::now() + timeout;
  for (auto pause = shortest; !work->isCompleted(); pause = std::min(2 * pause, longest)) {
    interrupt->check();
    check_in_time(std::chrono::steady_clock::now() < end, timeout);
    std::this_thread::sleep_for(pause);
  }
  interrupt->check();
  if (const auto error = work->exception()) {
    std::rethrow_exception(error);
  }
  TORCH_CHECK(backend.getError() == c10d::ErrorType::SUCCESS, "the communicator has an error");
  // What this thread launches from here on comes after it.
  work->synchronize();
}

inline bool is_on_host(const at::Tensor &tensor) { return tensor.device().is_cpu(); }

// Whether it has ended. Of a GPU with a fault that cannot be asked any more.
inline bool is_completed(const Work &work) {
  try {
    return work->isCompleted();
  } catch (...) {
    return false;
  }
}

// Whether all of them have ended within `grace`.
inline bool is_quiet(const std::vector<Work> &works, std::chrono::milliseconds grace) {
  const auto end = std::chrono::steady_clock::now() + grace;
  while (!std::all_of(works.begin(), works.end(), is_completed)) {
    if (std::chrono::steady_clock::now() >= end) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

} // namespace lcl
