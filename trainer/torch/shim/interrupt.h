// Ends the waits of one group from another thread.
//
// Shutting down a group's sockets wakes Gloo's waiters, but not all of them: `Pair::signalException` (gloo as in libtorch 2.11.0) tells the
// operations that have not begun, and forgets the one whose message is partly written (`tx_`) or partly read (`rx_`). Its waiter sleeps until
// its time-out, whatever becomes of the socket. So nothing of the shim waits for an operation alone: it waits for it or for the interruption.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace lcl {

// Something that happens once, well or with an error.
class Outcome {
public:
  // The first call counts. Returns whether it was this one.
  bool settle(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (settled_) {
      return false;
    }
    settled_ = true;
    error_ = std::move(error);
    changed_.notify_all();
    return true;
  }

  // Whether it has happened within `timeout`; throws its error.
  bool wait(std::chrono::milliseconds timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, timeout, [this] { return settled_; })) {
      return false;
    }
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
    return true;
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool settled_ = false;
  std::exception_ptr error_;
};

// The interruption of one group: none, or one for good. Every function may be called from any thread.
class Interrupt {
public:
  // Called with the reason, from the thread that interrupts. It must own what it uses: it may still run after `Watch` has ended.
  using Wake = std::function<void(const std::exception_ptr &)>;

  void fire(const std::string &reason) {
    std::map<uint64_t, Wake> wakes;
    std::exception_ptr error;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_ != nullptr) {
        return;
      }
      error_ = std::make_exception_ptr(std::runtime_error(reason));
      error = error_;
      wakes.swap(wakes_);
    }
    for (const auto &[key, wake] : wakes) {
      wake(error);
    }
  }

  // Throws once the group is interrupted.
  void check() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
  }

  // Returns a key for `forget`. Calls `wake` now if the group is interrupted.
  uint64_t add(Wake wake) {
    std::exception_ptr error;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_ == nullptr) {
        wakes_.emplace(++last_, std::move(wake));
        return last_;
      }
      error = error_;
    }
    wake(error);
    return 0;
  }

  void forget(uint64_t key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wakes_.erase(key);
  }

private:
  std::mutex mutex_;
  std::exception_ptr error_;
  std::map<uint64_t, Wake> wakes_;
  uint64_t last_ = 0;
};

// Has `wake` called when the group is interrupted, for as long as it lives.
class Watch {
public:
  Watch(std::shared_ptr<Interrupt> interrupt, Interrupt::Wake wake) : interrupt_(std::move(interrupt)), key_(interrupt_->add(std::move(wake))) {}
  Watch(const Watch &) = delete;
  Watch &operator=(const Watch &) = delete;
  ~Watch() { interrupt_->forget(key_); }

private:
  std::shared_ptr<Interrupt> interrupt_;
  uint64_t key_;
};

} // namespace lcl
