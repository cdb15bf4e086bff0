// See lcl_collectives.h.
#include "lcl_collectives.h"

#include "callback_store.h"
#include "guarded.h"
#include "operation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

// gloo_declarations/ stands in for gloo's headers: these are the sizes with the real ones, in libtorch 2.11.0 on x86-64 and aarch64.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "ProcessGroupGloo is another than gloo_declarations/ was made for");
static_assert(sizeof(c10d::ProcessGroupGloo::Options) == 176, "its options are others than gloo_declarations/ was made for");
static_assert(sizeof(c10d::ProcessGroupGloo::AsyncWork) == 784, "its works are others than gloo_declarations/ was made for");

struct lcl_device {
  std::shared_ptr<gloo::transport::Device> device;
};

namespace {

using at::Tensor;
using lcl::borrow;
using lcl::guarded;
using std::chrono::milliseconds;
using lcl::Work;

// --------------------------------------------------------------------------------------------------------------- reducer

// The sum of a bucket that was started.
struct Started {
  Work work;
  c10::intrusive_ptr<c10::ivalue::Future> sum;
};

// The sums of the buckets of one backward pass.
struct Buckets {
  c10::intrusive_ptr<c10d::Backend> backend;
  std::shared_ptr<lcl::Interrupt> interrupt;
  bool is_on_host = true;
  // Whether float32 travels as bfloat16.
  bool compresses = false;
  milliseconds timeout{1};
  std::vector<Started> started;
  // So that the group lives for as long as they run.
  std::vector<Work> unfinished;
  size_t expected = 0;
  // When the last bucket was started: from then on the backward pass only waits.
  std::chrono::steady_clock::time_point last_start{};

  // Forgets the sums, and remembers those that still run.
  void clear() {
    for (auto &bucket : started) {
      unfinished.push_back(std::move(bucket.work));
    }
    started.clear();
    unfinished.erase(std::remove_if(unfinished.begin(), unfinished.end(), lcl::is_completed), unfinished.end());
  }
};

// Called before the sum of a bucket starts; null for nobody.
std::atomic<void (*)(int)> bucket_observer{nullptr};

// Sums buckets without dividing them: losses are normalised by global counts before the backward pass.
class SumHook : public c10d::CppCommHookInterface<std::shared_ptr<Buckets>> {
public:
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket &bucket) override {
    if (auto *observer = bucket_observer.load(std::memory_order_relaxed)) {
      observer(static_cast<int>(bucket.getIndex()));
    }
    state_->interrupt->check();
    const Tensor whole = bucket.getBufferRef();
    const bool compresses = state_->compresses && whole.scalar_type() == at::kFloat;
    const Tensor travels = compresses ? whole.to(at::kBFloat16) : whole;
    std::vector<Tensor> tensors{travels};
    c10d::AllreduceOptions options;
    options.timeout = state_->timeout;
    auto work = lcl::start([&] { return state_->backend->allreduce(tensors, options); });
    const auto finish = [whole, travels] { return travels.is_same(whole) ? whole : Tensor(whole).copy_(travels); };
    auto sum = state_->is_on_host ? interruptible(work, finish) : on_device(work, finish);
    state_->started.push_back({std::move(work), sum});
    if (bucket.isLast()) {
      state_->expected = bucket.getIndex() + 1;
    }
    state_->last_start = std::chrono::steady_clock::now();
    return sum;
  }

private:
  // The Reducer waits in its own way for what this returns: it has to end with the interruption, too.
  template <typename Finish> c10::intrusive_ptr<c10::ivalue::Future> interruptible(const Work &work, Finish finish) {
    auto sum = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
    const auto outcome = std::make_shared<lcl::Outcome>();
    const auto fail = [sum, outcome](const std::exception_ptr &error) {
      if (outcome->settle(error)) {
        sum->setError(error);
      }
    };
    const auto interrupt = state_->interrupt;
    const auto key = interrupt->add(fail);
    work->getFuture()->addCallback([sum, outcome, fail, finish, interrupt, key](c10::ivalue::Future &future) {
      interrupt->forget(key);
      if (future.hasError()) {
        fail(future.exception_ptr());
      } else if (outcome->settle(nullptr)) {
        try {
          sum->markCompleted(finish());
        } catch (...) {
          sum->setError(std::current_exception());
        }
      }
    });
    return sum;
  }

  // Complete at once: streams wait, not threads.
  template <typename Finish> c10::intrusive_ptr<c10::ivalue::Future> on_device(const Work &work, Finish finish) {
    return work->getFuture()->then([finish](c10::ivalue::Future &) -> c10::IValue { return finish(); }, c10::TensorType::get());
  }
};

// Notes which parameters had a gradient accumulated.
class Marks {
public:
  explicit Marks(const std::vector<Tensor> &parameters) : marks_(std::make_shared<std::vector<std::atomic<uint8_t>>>(parameters.size())) {
    for (size_t index = 0; index < parameters.size(); ++index) {
      auto accumulator = torch::autograd::impl::grad_accumulator(parameters[index]);
      TORCH_CHECK(accumulator != nullptr, "parameter ", index, " needs no gradient");
      using torch::autograd::variable_list;
      auto hook = std::make_unique<torch::autograd::utils::LambdaPostHook>(
          [marks = marks_, index](const variable_list &outputs, const variable_list &) {
            (*marks)[index].store(1, std::memory_order_release);
            return outputs;
          });
      const auto key = accumulator->add_post_hook(std::move(hook));
      hooks_.emplace_back(std::move(accumulator), key);
    }
  }
  Marks(const Marks &) = delete;
  Marks &operator=(const Marks &) = delete;
  ~Marks() {
    for (auto &[accumulator, key] : hooks_) {
      accumulator->del_post_hook(key);
    }
  }

  void clear() {
    for (auto &mark : *marks_) {
      mark.store(0, std::memory_order_release);
    }
  }

  const std::vector<std::atomic<uint8_t>> &get() const { return *marks_; }

private:
  std::shared_ptr<std::vector<std::atomic<uint8_t>>> marks_;
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> hooks_;
};

struct Reduction {
  std::shared_ptr<Buckets> buckets;
  std::unique_ptr<Marks> marks;
  std::unique_ptr<c10d::Reducer> reducer;

  ~Reduction() {
    // The sums first: they hold the buckets' memory. The Reducer's destructor may throw by its declaration; it only removes hooks.
    try {
      buckets->clear();
      reducer.reset();
    } catch (...) {
    }
  }
};

std::unique_ptr<Reduction> make_reduction(const c10::intrusive_ptr<c10d::ProcessGroup> &group, std::shared_ptr<Buckets> buckets,
                                          std::vector<Tensor> parameters, size_t first_bucket_bytes, size_t bucket_bytes) {
  auto reduction = std::make_unique<Reduction>();
  reduction->buckets = std::move(buckets);
  // Gradients become ready from the last layer to the first. Until the Reducer has seen the true order, buckets follow this one.
  std::vector<Tensor> reversed(parameters.rbegin(), parameters.rend());
  std::vector<int64_t> indices(parameters.size());
  for (size_t index = 0; index < indices.size(); ++index) {
    indices[index] = static_cast<int64_t>(parameters.size() - 1 - index);
  }
  auto assignment =
      std::get<0>(c10d::compute_bucket_assignment_by_size(reversed, {first_bucket_bytes, bucket_bytes}, {}, indices));
  reduction->marks = std::make_unique<Marks>(parameters);
  std::vector<bool> sparse(parameters.size(), false);
  reduction->reducer = std::make_unique<c10d::Reducer>(
      std::move(parameters), std::move(assignment), group, std::move(sparse), static_cast<int64_t>(bucket_bytes),
      /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false, std::unordered_map<size_t, std::string>{},
      static_cast<int64_t>(first_bucket_bytes), /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      std::vector<int64_t>{});
  reduction->reducer->register_comm_hook(std::make_unique<SumHook>(reduction->buckets));
  return reduction;
}

} // namespace

// ----------------------------------------------------------------------------------------------------------------- group

// What ends a group's operations. Lives for as long as anybody may want to.
struct lcl_interrupter {
  std::shared_ptr<lcl::Interrupt> interrupt = std::make_shared<lcl::Interrupt>();
  // NCCL, once it is part of the group: its waits are ended by aborting it, once.
  std::mutex mutex;
  c10::intrusive_ptr<c10d::Backend> device;
  // Whether its communicator has been begun. An abort finds nothing to abort before.
  bool is_begun = false;
  bool was_aborted = false;
  bool was_begun_when_aborted = false;
  // Held while it is being aborted: who comes second returns when that is done.
  std::mutex aborting;

  void fire(const std::string &reason) {
    interrupt->fire(reason);
    const std::lock_guard<std::mutex> one_after_the_other(aborting);
    c10::intrusive_ptr<c10d::Backend> backend;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (device == nullptr || (was_aborted && was_begun_when_aborted == is_begun)) {
        return;
      }
      was_aborted = true;
      was_begun_when_aborted = is_begun;
      backend = device;
    }
    backend->abort();
  }
};

struct lcl_group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> host;
  c10::intrusive_ptr<c10d::Backend> device;
  // What the Reducer wants to have; its backends are the two above.
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  std::shared_ptr<lcl_interrupter> interrupter = std::make_shared<lcl_interrupter>();
  // Collectives that had not ended when their caller was told that they failed.
  std::vector<Work> unfinished;
  // Dropped first: members are destroyed from the last to the first.
  std::unique_ptr<Reduction> reduction;

  Reduction &attached() {
    TORCH_CHECK(reduction != nullptr, "no parameters are attached to the group");
    return *reduction;
  }

  const c10::intrusive_ptr<c10d::Backend> &backend(const Tensor &tensor) {
    const auto &backend = lcl::is_on_host(tensor) ? host : device;
    TORCH_CHECK(backend != nullptr, "the group has no collectives for tensors on ", tensor.device());
    return backend;
  }

  const std::shared_ptr<lcl::Interrupt> &interrupt() { return interrupter->interrupt; }

  // Starts a collective and waits for it.
  template <typename Start> void run(const Tensor &tensor, int64_t timeout, Start &&body) {
    interrupt()->check();
    const auto used = backend(tensor);
    auto work = lcl::start([&] { return body(*used); });
    try {
      if (lcl::is_on_host(tensor)) {
        lcl::complete_on_host(interrupt(), work, milliseconds(timeout));
      } else {
        lcl::complete_on_device(interrupt(), *used, work, milliseconds(timeout));
      }
    } catch (...) {
      unfinished.push_back(std::move(work));
      throw;
    }
  }

  // Starts a send or receive and waits for it.
  template <typename Start> void transfer(const Tensor &tensor, int64_t timeout, Start &&body) {
    if (lcl::is_on_host(tensor)) {
      interrupt()->check();
      lcl::complete_transfer(interrupt(), lcl::start([&] { return body(*host); }), milliseconds(timeout));
      return;
    }
    run(tensor, timeout, [&](c10d::Backend &used) {
      // Alone, it would open a communicator of two members; within a batch it travels by the group's.
      used.startCoalescing();
      body(used);
      return used.endCoalescing();
    });
  }
};

namespace {

template <typename Options> Options with_timeout(int64_t timeout) {
  Options options;
  options.timeout = milliseconds(timeout);
  return options;
}

std::unique_ptr<lcl_group> form(const lcl_group_arguments &arguments, const c10::intrusive_ptr<c10d::Store> &callbacks) {
  const milliseconds timeout(arguments.timeout);
  auto group = std::make_unique<lcl_group>();
  group->store = c10::make_intrusive<c10d::PrefixStore>(arguments.prefix, callbacks);
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(arguments.device->device);
  group->host = c10::make_intrusive<c10d::ProcessGroupGloo>(group->store, arguments.rank, arguments.size, options);
  group->group = c10::make_intrusive<c10d::ProcessGroup>(group->store, arguments.rank, arguments.size);
  group->group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, group->host);
  group->group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  return group;
}

void add_nccl(lcl_group &group, const lcl_nccl_interface &nccl, int32_t device, int64_t timeout) {
  group.interrupt()->check();
  const at::Device place(at::kCUDA, static_cast<c10::DeviceIndex>(device));
  const c10::OptionalDeviceGuard guard(place);
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>("nccl", group.store);
  const lcl_nccl_arguments arguments{&store, group.group->getRank(), group.group->getSize(), device, timeout};
  c10::intrusive_ptr<c10d::Backend> backend;
  if (nccl.form(&arguments, &backend) != 0) {
    throw std::runtime_error(nccl.last_error());
  }
  {
    const std::lock_guard<std::mutex> lock(group.interrupter->mutex);
    group.interrupter->device = backend;
  }
  // From here on NCCL is a part of the group, whatever becomes of it.
  group.device = backend;
  const auto end = std::chrono::steady_clock::now() + milliseconds(timeout);
  // An operation would make the communicator, too, but wait for the other members in a way that no abort ends.
  backend->eagerConnectSingleDevice(place);
  {
    const std::lock_guard<std::mutex> lock(group.interrupter->mutex);
    group.interrupter->is_begun = true;
  }
  for (int32_t ready = 0; ready == 0; std::this_thread::sleep_for(milliseconds(1))) {
    group.interrupt()->check();
    if (nccl.is_ready(&backend, &ready) != 0) {
      throw std::runtime_error(nccl.last_error());
    }
    lcl::check_in_time(ready != 0 || std::chrono::steady_clock::now() < end, milliseconds(timeout));
  }
  group.group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  // Connections are made by the first operation. Here, so that they are part of forming.
  std::vector<Tensor> one{at::ones({1}, at::TensorOptions(place).dtype(at::kFloat))};
  group.run(one[0], timeout, [&](c10d::Backend &used) { return used.allreduce(one, with_timeout<c10d::AllreduceOptions>(timeout)); });
  TORCH_CHECK(one[0].item<float>() == static_cast<float>(group.group->getSize()), "the first sum of NCCL is wrong");
}

// Groups whose NCCL is still ending, on threads of their own. They must be gone before the CUDA driver is unloaded at the process's end.
class Leaving {
public:
  static Leaving &instance() {
    // Never destroyed: those threads may be the last to run.
    static auto *const leaving = new Leaving();
    return *leaving;
  }

  void begin() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!is_registered_) {
      // libtorch_cuda is loaded: what it does at the exit comes after this.
      is_registered_ = on_exit([](int status, void *) { instance().wait(status); }, nullptr) == 0;
    }
    ++count_;
  }

  void end() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      --count_;
    }
    changed_.notify_all();
  }

private:
  void wait(int status) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(5), [this] { return count_ == 0; })) {
      std::fflush(nullptr);
      _exit(status);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  size_t count_ = 0;
  bool is_registered_ = false;
};

// Tells once that a group is gone.
class Gone {
public:
  Gone(lcl_gone tell, void *context) : tell_(tell), context_(context) {}
  Gone(Gone &&other) noexcept : tell_(std::exchange(other.tell_, nullptr)), context_(other.context_) {}
  Gone &operator=(Gone &&) = delete;
  ~Gone() {
    if (tell_ != nullptr) {
      tell_(context_);
    }
  }

private:
  lcl_gone tell_;
  void *context_;
};

// See `lcl_group_drop`.
void drop(std::unique_ptr<lcl_group> group, milliseconds grace, Gone gone) {
  group->interrupt()->fire("the group was closed");
  auto works = std::move(group->unfinished);
  if (group->reduction != nullptr) {
    const auto buckets = group->reduction->buckets;
    group->reduction.reset();
    works.insert(works.end(), buckets->unfinished.begin(), buckets->unfinished.end());
    buckets->unfinished.clear();
  }
  if (group->device == nullptr) {
    if (lcl::is_quiet(works, grace)) {
      works.clear();
      group.reset();
      return;
    }
    // Its threads end with their operations' time-out. Until then they own what they may still write to.
    std::thread([left = std::move(group), works = std::move(works)]() mutable { left.reset(); }).detach();
    return;
  }
  // Aborting NCCL takes half a second: its proxy looks that often whether it is to end. Nobody has to wait for it, since nothing that the
  // caller goes on to use is the group's.
  Leaving::instance().begin();
  auto leave = [left = std::move(group), works = std::move(works), gone = std::move(gone)]() mutable {
    (void)guarded([&] {
      const Gone told = std::move(gone);
      left->interrupter->fire("the group was closed");
    });
    (void)guarded([&] {
      {
        const std::lock_guard<std::mutex> lock(left->interrupter->mutex);
        left->interrupter->device.reset();
      }
      left.reset();
      works.clear();
    });
    Leaving::instance().end();
  };
  try {
    std::thread(std::move(leave)).detach();
  } catch (...) {
    Leaving::instance().end();
    throw;
  }
}

} // namespace

extern "C" {

void lcl_operations(uint64_t *started, uint64_t *waited) {
  *started = lcl::started_operations.load();
  *waited = lcl::waited_nanoseconds.load();
}

void lcl_bytes_assign(void *value, const uint8_t *data, size_t size) {
  static_cast<std::vector<uint8_t> *>(value)->assign(data, data + size);
}

int lcl_device_open(const char *host, lcl_device **device) {
  return guarded([&] { *device = new lcl_device{c10d::ProcessGroupGloo::createDeviceForHostname(host, /*lazyInit=*/false)}; });
}

void lcl_device_drop(lcl_device *device) { delete device; }

int lcl_group_form(const lcl_group_arguments *arguments, lcl_group **group) {
  return guarded([&] {
    const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<lcl::CallbackStore>(arguments->store, milliseconds(arguments->timeout));
    *group = form(*arguments, store).release();
  });
}

int lcl_group_add_nccl(lcl_group *group, const lcl_nccl_interface *nccl, int32_t device, int64_t timeout) {
  return guarded([&] { add_nccl(*group, *nccl, device, timeout); });
}

lcl_interrupter *lcl_group_interrupter(lcl_group *group) {
  return reinterpret_cast<lcl_interrupter *>(new std::shared_ptr<lcl_interrupter>(group->interrupter));
}

void lcl_interrupter_fire(lcl_interrupter *interrupter, const char *reason) {
  (void)guarded([&] { (*reinterpret_cast<std::shared_ptr<lcl_interrupter> *>(interrupter))->fire(reason); });
}

void lcl_interrupter_drop(lcl_interrupter *interrupter) { delete reinterpret_cast<std::shared_ptr<lcl_interrupter> *>(interrupter); }

void lcl_group_drop(lcl_group *group, int64_t grace, lcl_gone gone, void *context) {
  (void)guarded([&] { drop(std::unique_ptr<lcl_group>(group), milliseconds(grace), Gone(gone, context)); });
}

int lcl_group_all_reduce(lcl_group *group, lcl_tensor tensor, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    const auto options = with_timeout<c10d::AllreduceOptions>(timeout);
    group->run(tensors[0], timeout, [&](c10d::Backend &backend) { return backend.allreduce(tensors, options); });
  });
}

int lcl_group_broadcast(lcl_group *group, lcl_tensor tensor, int32_t root, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    auto options = with_timeout<c10d::BroadcastOptions>(timeout);
    options.rootRank = root;
    group->run(tensors[0], timeout, [&](c10d::Backend &backend) { return backend.broadcast(tensors, options); });
  });
}

int lcl_group_all_gather(lcl_group *group, lcl_tensor input, lcl_tensor *outputs, size_t count, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> inputs{borrow(input).detach()};
    std::vector<std::vector<Tensor>> gathered(1);
    for (size_t rank = 0; rank < count; ++rank) {
      gathered[0].push_back(borrow(outputs[rank]).detach());
    }
    const auto options = with_timeout<c10d::AllgatherOptions>(timeout);
    group->run(inputs[0], timeout, [&](c10d::Backend &backend) { return backend.allgather(gathered, inputs, options); });
  });
}

int lcl_group_all_to_all(lcl_group *group, lcl_tensor input, const int64_t *input_counts, lcl_tensor output,
                         const int64_t *output_counts, size_t count, int64_t timeout) {
  return guarded([&] {
    Tensor from = borrow(input).detach();
    Tensor to = borrow(output).detach();
    std::vector<int64_t> from_counts(input_counts, input_counts + count);
    std::vector<int64_t> to_counts(output_counts, output_counts + count);
    const auto options = with_timeout<c10d::AllToAllOptions>(timeout);
    group->run(from, timeout, [&](c10d::Backend &backend) { return backend.alltoall_base(to, from, to_counts, from_counts, options); });
  });
}

int lcl_group_send(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    group->transfer(tensors[0], timeout, [&](c10d::Backend &backend) { return backend.send(tensors, rank, tag); });
  });
}

int lcl_group_receive(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    group->transfer(tensors[0], timeout, [&](c10d::Backend &backend) { return backend.recv(tensors, rank, tag); });
  });
}

int lcl_group_relay(lcl_group *group, const lcl_passing *incoming, size_t incoming_count, const lcl_passing *outgoing,
                    size_t outgoing_count, int64_t timeout) {
  return guarded([&] {
    group->interrupt()->check();
    const auto end = std::chrono::steady_clock::now() + milliseconds(timeout);
    std::vector<lcl::Work> works;
    for (size_t index = 0; index < incoming_count; ++index) {
      std::vector<Tensor> tensors{borrow(incoming[index].tensor).detach()};
      works.push_back(lcl::start([&] { return group->host->recv(tensors, incoming[index].rank, incoming[index].tag); }));
    }
    for (size_t index = 0; index < outgoing_count; ++index) {
      std::vector<Tensor> tensors{borrow(outgoing[index].tensor).detach()};
      works.push_back(lcl::start([&] { return group->host->send(tensors, outgoing[index].rank, outgoing[index].tag); }));
    }
    for (const auto &work : works) {
      const auto rest = std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
      // No time at all would be no limit.
      lcl::complete_transfer(group->interrupt(), work, std::max(rest, milliseconds(1)));
    }
  });
}

int lcl_group_attach(lcl_group *group, lcl_tensor *parameters, size_t count, const lcl_bucket_options *options) {
  return guarded([&] {
    std::vector<Tensor> list;
    list.reserve(count);
    for (size_t index = 0; index < count; ++index) {
      list.push_back(borrow(parameters[index]));
    }
    TORCH_CHECK(!list.empty(), "there are no parameters");
    auto buckets = std::make_shared<Buckets>();
    buckets->backend = group->backend(list[0]);
    buckets->interrupt = group->interrupt();
    buckets->is_on_host = lcl::is_on_host(list[0]);
    buckets->compresses = options->compresses != 0;
    // Hooks of the former parameters go first: the new ones may be the same tensors.
    group->reduction.reset();
    group->reduction =
        make_reduction(group->group, std::move(buckets), std::move(list), options->first_bucket_bytes, options->bucket_bytes);
  });
}

int lcl_group_prepare(lcl_group *group, int64_t timeout) {
  return guarded([&] {
    auto &reduction = group->attached();
    // The Reducer broadcasts the order of the buckets after the first backward pass, under the group's own time-out.
    reduction.buckets->backend->getBackendOptions()->timeout = milliseconds(timeout);
    reduction.reducer->rebuild_buckets();
    reduction.buckets->clear();
    reduction.buckets->expected = 0;
    reduction.buckets->timeout = milliseconds(timeout);
    reduction.marks->clear();
    reduction.reducer->prepare_for_backward({});
  });
}

int lcl_group_reached(lcl_group *group, uint8_t *reached, size_t count) {
  return guarded([&] {
    const auto &marks = group->attached().marks->get();
    TORCH_CHECK(marks.size() == count, count, " parameters asked for, ", marks.size(), " attached");
    for (size_t index = 0; index < count; ++index) {
      reached[index] = marks[index].load(std::memory_order_acquire);
    }
  });
}

int lcl_group_finish(lcl_group *group) {
  return guarded([&] {
    auto &buckets = *group->attached().buckets;
    TORCH_CHECK(buckets.expected != 0 && buckets.started.size() == buckets.expected, "only ", buckets.started.size(), " of ",
                buckets.expected, " buckets of gradients were started");
    {
      const lcl::Waiting since_the_last_bucket(buckets.last_start);
    }
    for (const auto &[work, sum] : buckets.started) {
      // The Reducer has waited for the sum, which is there a moment before its work has ended.
      TORCH_CHECK(sum->completed(), "a bucket of gradients was not complete after the backward pass");
      if (sum->hasError()) {
        std::rethrow_exception(sum->exception_ptr());
      }
      if (buckets.is_on_host) {
        lcl::complete_on_host(buckets.interrupt, work, buckets.timeout);
      } else {
        lcl::complete_on_device(buckets.interrupt, *buckets.backend, work, buckets.timeout);
      }
    }
    buckets.clear();
  });
}

void lcl_observe_buckets(void (*observer)(int index)) { bucket_observer.store(observer, std::memory_order_relaxed); }

int lcl_group_bucket_failure(lcl_group *group, int32_t *failed) {
  *failed = 0;
  if (group->reduction == nullptr) {
    return 0;
  }
  for (const auto &bucket : group->reduction->buckets->started) {
    if (bucket.sum->completed() && bucket.sum->hasError()) {
      *failed = 1;
      (void)guarded([&] { std::rethrow_exception(bucket.sum->exception_ptr()); });
      return 0;
    }
  }
  // A device's buckets fail without an error of their sums, and a bucket cannot even start when the group is interrupted.
  if (guarded([&] { group->interrupt()->check(); }) != 0) {
    *failed = 1;
  }
  return 0;
}
}
