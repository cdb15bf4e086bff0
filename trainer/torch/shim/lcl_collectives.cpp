// See lcl_collectives.h.
#include "lcl_collectives.h"

#include "guarded.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

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
using Work = c10::intrusive_ptr<c10d::Work>;

// ----------------------------------------------------------------------------------------------------------------- store

lcl_string view(const std::string &text) { return {text.data(), text.size()}; }

std::vector<lcl_string> views(const std::vector<std::string> &texts) {
  std::vector<lcl_string> list;
  list.reserve(texts.size());
  for (const auto &text : texts) {
    list.push_back(view(text));
  }
  return list;
}

lcl_string view(const std::vector<uint8_t> &bytes) { return {reinterpret_cast<const char *>(bytes.data()), bytes.size()}; }

// The caller's store. Its errors become exceptions here and errors again at the end of `lcl_group_form`.
class CallbackStore : public c10d::Store {
public:
  CallbackStore(lcl_store callbacks, milliseconds timeout)
      : c10d::Store(timeout), callbacks_(new lcl_store(callbacks), [](const lcl_store *store) {
          store->drop(store->data);
          delete store;
        }) {}

  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<CallbackStore>(*this); }

  using c10d::Store::set;
  void set(const std::string &key, const std::vector<uint8_t> &value) override {
    check_status(callbacks_->set(callbacks_->data, view(key), value.data(), value.size(), limit()));
  }

  using c10d::Store::compareSet;
  std::vector<uint8_t> compareSet(const std::string &key, const std::vector<uint8_t> &expected,
                                  const std::vector<uint8_t> &desired) override {
    std::vector<uint8_t> value;
    check_status(callbacks_->compare_set(callbacks_->data, view(key), view(expected), view(desired), &value, limit()));
    return value;
  }

  std::vector<uint8_t> get(const std::string &key) override {
    std::vector<uint8_t> value;
    check_status(callbacks_->get(callbacks_->data, view(key), &value, limit()));
    return value;
  }

  int64_t add(const std::string &key, int64_t amount) override {
    int64_t sum = 0;
    check_status(callbacks_->add(callbacks_->data, view(key), amount, &sum, limit()));
    return sum;
  }

  bool deleteKey(const std::string &key) override {
    int32_t removed = 0;
    check_status(callbacks_->remove(callbacks_->data, view(key), &removed, limit()));
    return removed != 0;
  }

  bool check(const std::vector<std::string> &keys) override {
    const auto list = views(keys);
    int32_t present = 0;
    check_status(callbacks_->check(callbacks_->data, list.data(), list.size(), &present, limit()));
    return present != 0;
  }

  int64_t getNumKeys() override {
    int64_t keys = 0;
    check_status(callbacks_->count(callbacks_->data, &keys, limit()));
    return keys;
  }

  void wait(const std::vector<std::string> &keys) override { wait(keys, timeout_); }

  void wait(const std::vector<std::string> &keys, const milliseconds &timeout) override {
    const auto list = views(keys);
    const auto bounded = timeout.count() > 0 ? std::min<int64_t>(timeout.count(), limit()) : limit();
    check_status(callbacks_->wait(callbacks_->data, list.data(), list.size(), bounded));
  }

private:
  int64_t limit() const { return std::max<int64_t>(timeout_.count(), 1); }

  static void check_status(int status) {
    if (status != 0) {
      throw std::runtime_error(lcl_last_error());
    }
  }

  std::shared_ptr<const lcl_store> callbacks_;
};

// --------------------------------------------------------------------------------------------------------------- reducer

// Starts an operation. libtorch's flight recorder keeps the state of all groups of a process in one map without a lock, so that groups of
// several threads (tests, the self-test) must not start operations at once.
template <typename Start> Work start(Start &&body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  return body();
}

// The sums of the buckets of one backward pass.
struct Buckets {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  milliseconds timeout{1};
  std::vector<Work> works;
  size_t expected = 0;
};

// Sums buckets without dividing them: losses are normalised by global counts before the backward pass.
class SumHook : public c10d::CppCommHookInterface<std::shared_ptr<Buckets>> {
public:
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket &bucket) override {
    std::vector<Tensor> tensors{bucket.getBufferRef()};
    c10d::AllreduceOptions options;
    options.timeout = state_->timeout;
    auto work = start([&] { return state_->gloo->allreduce(tensors, options); });
    state_->works.push_back(work);
    if (bucket.isLast()) {
      state_->expected = bucket.getIndex() + 1;
    }
    return work->getFuture();
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
    // The works first: they hold the buckets' memory. The Reducer's destructor may throw by its declaration; it only removes hooks.
    buckets->works.clear();
    try {
      reducer.reset();
    } catch (...) {
    }
  }
};

std::unique_ptr<Reduction> make_reduction(const c10::intrusive_ptr<c10d::ProcessGroup> &group,
                                          const c10::intrusive_ptr<c10d::ProcessGroupGloo> &gloo, std::vector<Tensor> parameters,
                                          size_t first_bucket_bytes, size_t bucket_bytes) {
  auto reduction = std::make_unique<Reduction>();
  reduction->buckets = std::make_shared<Buckets>();
  reduction->buckets->gloo = gloo;
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

struct lcl_group {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  // What the Reducer wants to have; its only backend is `gloo`.
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // Dropped first: members are destroyed from the last to the first.
  std::unique_ptr<Reduction> reduction;

  Reduction &attached() {
    TORCH_CHECK(reduction != nullptr, "no parameters are attached to the group");
    return *reduction;
  }
};

namespace {

void complete(const Work &work, int64_t timeout) {
  TORCH_CHECK(work->wait(milliseconds(timeout)), "the operation was aborted");
}

template <typename Options> Options with_timeout(int64_t timeout) {
  Options options;
  options.timeout = milliseconds(timeout);
  return options;
}

std::unique_ptr<lcl_group> form(const lcl_group_arguments &arguments, const c10::intrusive_ptr<c10d::Store> &callbacks) {
  const milliseconds timeout(arguments.timeout);
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>(arguments.prefix, callbacks);
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(arguments.device->device);
  auto group = std::make_unique<lcl_group>();
  group->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, arguments.rank, arguments.size, options);
  group->group = c10::make_intrusive<c10d::ProcessGroup>(store, arguments.rank, arguments.size);
  group->group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO,
                           c10::static_intrusive_pointer_cast<c10d::Backend>(group->gloo));
  group->group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  return group;
}

} // namespace

extern "C" {

void lcl_bytes_assign(void *value, const uint8_t *data, size_t size) {
  static_cast<std::vector<uint8_t> *>(value)->assign(data, data + size);
}

int lcl_device_open(const char *host, lcl_device **device) {
  return guarded([&] { *device = new lcl_device{c10d::ProcessGroupGloo::createDeviceForHostname(host, /*lazyInit=*/false)}; });
}

void lcl_device_drop(lcl_device *device) { delete device; }

int lcl_group_form(const lcl_group_arguments *arguments, lcl_group **group) {
  return guarded([&] {
    const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<CallbackStore>(arguments->store, milliseconds(arguments->timeout));
    *group = form(*arguments, store).release();
  });
}

void lcl_group_drop(lcl_group *group) {
  (void)guarded([&] { delete group; });
}

int lcl_group_all_reduce(lcl_group *group, lcl_tensor tensor, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    complete(start([&] { return group->gloo->allreduce(tensors, with_timeout<c10d::AllreduceOptions>(timeout)); }), timeout);
  });
}

int lcl_group_broadcast(lcl_group *group, lcl_tensor tensor, int32_t root, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    auto options = with_timeout<c10d::BroadcastOptions>(timeout);
    options.rootRank = root;
    complete(start([&] { return group->gloo->broadcast(tensors, options); }), timeout);
  });
}

int lcl_group_all_gather(lcl_group *group, lcl_tensor input, lcl_tensor *outputs, size_t count, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> inputs{borrow(input).detach()};
    std::vector<std::vector<Tensor>> gathered(1);
    for (size_t rank = 0; rank < count; ++rank) {
      gathered[0].push_back(borrow(outputs[rank]).detach());
    }
    complete(start([&] { return group->gloo->allgather(gathered, inputs, with_timeout<c10d::AllgatherOptions>(timeout)); }), timeout);
  });
}

int lcl_group_send(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    complete(start([&] { return group->gloo->send(tensors, rank, tag); }), timeout);
  });
}

int lcl_group_receive(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout) {
  return guarded([&] {
    std::vector<Tensor> tensors{borrow(tensor).detach()};
    complete(start([&] { return group->gloo->recv(tensors, rank, tag); }), timeout);
  });
}

int lcl_group_attach(lcl_group *group, lcl_tensor *parameters, size_t count, size_t first_bucket_bytes, size_t bucket_bytes) {
  return guarded([&] {
    std::vector<Tensor> list;
    list.reserve(count);
    for (size_t index = 0; index < count; ++index) {
      list.push_back(borrow(parameters[index]));
    }
    // Hooks of the former parameters go first: the new ones may be the same tensors.
    group->reduction.reset();
    group->reduction = make_reduction(group->group, group->gloo, std::move(list), first_bucket_bytes, bucket_bytes);
  });
}

int lcl_group_prepare(lcl_group *group, int64_t timeout) {
  return guarded([&] {
    auto &reduction = group->attached();
    // The Reducer broadcasts the order of the buckets after the first backward pass, under the group's own time-out.
    group->gloo->getOptions()->timeout = milliseconds(timeout);
    reduction.reducer->rebuild_buckets();
    reduction.buckets->works.clear();
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
    TORCH_CHECK(buckets.expected != 0 && buckets.works.size() == buckets.expected, "only ", buckets.works.size(), " of ",
                buckets.expected, " buckets of gradients were started");
    for (const auto &work : buckets.works) {
      // The Reducer has waited for the future, which is marked a moment before its work.
      TORCH_CHECK(work->getFuture()->completed(), "a bucket of gradients was not complete after the backward pass");
      complete(work, buckets.timeout.count());
    }
    buckets.works.clear();
  });
}

int lcl_group_bucket_failure(lcl_group *group, int32_t *failed) {
  *failed = 0;
  if (group->reduction == nullptr) {
    return 0;
  }
  for (const auto &work : group->reduction->buckets->works) {
    const auto future = work->getFuture();
    if (future->completed() && future->hasError()) {
      *failed = 1;
      (void)guarded([&] { std::rethrow_exception(future->exception_ptr()); });
      return 0;
    }
  }
  return 0;
}
}
