// See lcl_shim.h.
#include "lcl_shim.h"

#include "guarded.h"
#include "linear_cross_entropy.h"
#include "retaining_allocator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/version.h>

namespace {

using at::Tensor;
using lcl::borrow;
using lcl::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---------------------------------------------------------------------------------------------------------------- errors

thread_local std::string last_error;

lcl_tensor release(Tensor tensor) { return new Tensor(std::move(tensor)); }

// -------------------------------------------------------------------------------------------------------------- optimizer

std::vector<Tensor> gradients_of(lcl_tensor *parameters, size_t count) {
  std::vector<Tensor> gradients;
  gradients.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor &gradient = borrow(parameters[i]).grad();
    if (gradient.defined()) {
      gradients.push_back(gradient);
    }
  }
  return gradients;
}

void adamw_step(const lcl_adamw_arguments &arguments) {
  at::NoGradGuard no_grad;
  std::vector<Tensor> parameters, gradients, first, second;
  for (size_t i = 0; i < arguments.count; ++i) {
    const Tensor &parameter = borrow(arguments.parameters[i]);
    if (parameter.grad().defined()) {
      parameters.push_back(parameter.detach());
      gradients.push_back(parameter.grad());
      first.push_back(borrow(arguments.first_moments[i]));
      second.push_back(borrow(arguments.second_moments[i]));
    }
  }
  if (parameters.empty()) {
    return;
  }
  const auto options = at::TensorOptions().dtype(at::kFloat).device(parameters.front().device());
  const std::vector<Tensor> steps(parameters.size(), at::full({}, static_cast<double>(arguments.step), options));
  std::optional<Tensor> divisor;
  if (arguments.gradient_scale != 1.0) {
    divisor = at::full({}, 1.0 / arguments.gradient_scale, options);
  }
  at::_fused_adamw_(parameters, gradients, first, second, {}, steps, arguments.learning_rate, arguments.beta1, arguments.beta2,
                    arguments.weight_decay, arguments.epsilon, /*amsgrad=*/false, /*maximize=*/false, divisor, std::nullopt);
}

double gradient_norm(lcl_tensor *parameters, size_t count) {
  at::NoGradGuard no_grad;
  const auto gradients = gradients_of(parameters, count);
  if (gradients.empty()) {
    return 0.0;
  }
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients))).item<double>();
}

// ----------------------------------------------------------------------------------------------------------- checkpointing

// A closure owned by Rust.
struct Closure {
  void *data;
  lcl_run run;
  lcl_drop drop;

  Closure(void *data, lcl_run run, lcl_drop drop) : data(data), run(run), drop(drop) {}
  Closure(const Closure &) = delete;
  Closure &operator=(const Closure &) = delete;
  ~Closure() { drop(data); }

  Tensor operator()(const std::vector<Tensor> &inputs) const {
    std::vector<lcl_tensor> pointers;
    for (const Tensor &input : inputs) {
      pointers.push_back(const_cast<Tensor *>(&input));
    }
    lcl_tensor output = nullptr;
    if (run(data, pointers.data(), pointers.size(), &output) != 0) {
      throw std::runtime_error(last_error);
    }
    const std::unique_ptr<Tensor> owned(static_cast<Tensor *>(output));
    return *owned;
  }
};

// Sets the autocast state of one device type and puts the former back.
class AutocastScope {
public:
  AutocastScope(at::DeviceType device, bool enabled, at::ScalarType dtype, bool cache)
      : device_(device), enabled_(at::autocast::is_autocast_enabled(device)), dtype_(at::autocast::get_autocast_dtype(device)),
        cache_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
  }
  AutocastScope(const AutocastScope &) = delete;
  AutocastScope &operator=(const AutocastScope &) = delete;
  ~AutocastScope() {
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, dtype_);
    at::autocast::set_autocast_cache_enabled(cache_);
  }

private:
  at::DeviceType device_;
  bool enabled_;
  at::ScalarType dtype_;
  bool cache_;
};

// Kept from forward to backward.
struct Recomputation : torch::CustomClassHolder {
  std::shared_ptr<Closure> closure;
  at::DeviceType device;
  bool autocast;
  at::ScalarType dtype;
  bool cache;
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static Tensor forward(AutogradContext *ctx, const std::shared_ptr<Closure> &closure, at::TensorList inputs) {
    const auto device = inputs.front().device().type();
    auto state = c10::make_intrusive<Recomputation>();
    state->closure = closure;
    state->device = device;
    state->autocast = at::autocast::is_autocast_enabled(device);
    state->dtype = at::autocast::get_autocast_dtype(device);
    state->cache = at::autocast::is_autocast_cache_enabled();
    ctx->saved_data["state"] = c10::IValue::make_capsule(std::move(state));
    ctx->save_for_backward(inputs.vec());
    return (*closure)(inputs.vec());
  }

  static variable_list backward(AutogradContext *ctx, variable_list grad_outputs) {
    const auto state = c10::static_intrusive_pointer_cast<Recomputation>(ctx->saved_data["state"].toCapsule());
    std::vector<Tensor> inputs;
    for (const Tensor &saved : ctx->get_saved_variables()) {
      inputs.push_back(saved.detach().requires_grad_(saved.requires_grad()));
    }
    Tensor output;
    {
      at::AutoGradMode with_gradients(true);
      AutocastScope autocast(state->device, state->autocast, state->dtype, state->cache);
      output = (*state->closure)(inputs);
    }
    torch::autograd::backward({output}, {grad_outputs[0]});
    variable_list gradients{Tensor()};
    for (const Tensor &input : inputs) {
      gradients.push_back(input.grad());
    }
    return gradients;
  }
};

// ------------------------------------------------------------------------------------------------------------------- CUDA

// Loads libtorch_cuda from libtorch_cpu's folder; it registers itself with c10. Null when it is not there or cannot be loaded.
void *cuda_library() {
  static void *const library = []() -> void * {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void *>(&at::get_num_threads), &info) == 0 || info.dli_fname == nullptr) {
      return nullptr;
    }
    const std::string path(info.dli_fname);
    const auto folder = path.substr(0, path.rfind('/') + 1);
    return dlopen((folder + "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
  }();
  return library;
}

bool cuda_load() { return cuda_library() != nullptr && c10::impl::hasDeviceGuardImpl(at::kCUDA); }

int32_t cuda_device_count() { return cuda_load() ? c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount() : 0; }

c10::DeviceIndex checked_device(int32_t device) {
  const int32_t count = cuda_device_count();
  TORCH_CHECK(device >= 0 && device < count, "there is no CUDA device ", device, ": ", count, " found");
  return static_cast<c10::DeviceIndex>(device);
}

// A function of the CUDA runtime that libtorch_cuda brought along; this library is not linked against one.
template <typename Function> Function cuda_runtime(const char *name) {
  const auto function = cuda_load() ? reinterpret_cast<Function>(dlsym(cuda_library(), name)) : nullptr;
  TORCH_CHECK(function != nullptr, "there is no CUDA runtime with ", name);
  return function;
}

// NUL-terminated; cut where the place is too small.
void copy_text(const std::string &from, char *to, int64_t size) {
  const auto length = std::min(from.size(), static_cast<size_t>(size - 1));
  std::memcpy(to, from.data(), length);
  to[length] = '\0';
}

} // namespace

// --------------------------------------------------------------------------------------------------------------- interface

extern "C" {

const char *lcl_last_error(void) { return last_error.c_str(); }

void lcl_set_error(const char *message) { last_error = message; }

int lcl_linear_cross_entropy(lcl_tensor hidden, lcl_tensor weight, lcl_tensor labels, double scale, lcl_tensor *loss, lcl_tensor *terms) {
  return guarded([&] {
    Tensor of_rows;
    Tensor sum = lcl::linear_cross_entropy(borrow(hidden), borrow(weight), borrow(labels), scale, terms == nullptr ? nullptr : &of_rows);
    if (terms != nullptr) {
      *terms = release(std::move(of_rows));
    }
    *loss = release(std::move(sum));
  });
}

int lcl_adamw_step(const lcl_adamw_arguments *arguments) {
  return guarded([&] { adamw_step(*arguments); });
}

int lcl_gradient_norm(lcl_tensor *parameters, size_t count, double *norm) {
  return guarded([&] { *norm = gradient_norm(parameters, count); });
}

int lcl_scale_gradients(lcl_tensor *parameters, size_t count, double factor) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto gradients = gradients_of(parameters, count);
    if (!gradients.empty()) {
      at::_foreach_mul_(gradients, at::Scalar(factor));
    }
  });
}

int lcl_take_gradients(lcl_tensor *parameters, size_t count, lcl_tensor *gradients) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<Tensor> taken;
    taken.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const Tensor &parameter = borrow(parameters[i]);
      taken.push_back(parameter.grad().defined() ? parameter.grad().detach().contiguous() : at::zeros_like(parameter));
    }
    for (size_t i = 0; i < count; ++i) {
      borrow(parameters[i]).mutable_grad().reset();
      gradients[i] = release(std::move(taken[i]));
    }
  });
}

int lcl_set_gradients(lcl_tensor *parameters, size_t count, lcl_tensor *gradients) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i) {
      const Tensor &parameter = borrow(parameters[i]);
      const Tensor &gradient = borrow(gradients[i]);
      TORCH_CHECK(gradient.sizes() == parameter.sizes(), "a gradient of shape ", gradient.sizes(), " for a parameter of shape ",
                  parameter.sizes());
    }
    for (size_t i = 0; i < count; ++i) {
      borrow(parameters[i]).mutable_grad() = borrow(gradients[i]).detach();
    }
  });
}

int lcl_add_tensors(lcl_tensor *sums, lcl_tensor *next, size_t count) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<Tensor> left, right;
    left.reserve(count);
    right.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      left.push_back(borrow(sums[i]));
      right.push_back(borrow(next[i]));
    }
    at::_foreach_add_(left, right);
  });
}

int lcl_zero_gradients(lcl_tensor *parameters, size_t count, int keep_memory) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < count; ++i) {
      const Tensor &parameter = borrow(parameters[i]);
      if (!parameter.grad().defined()) {
        continue;
      }
      if (keep_memory != 0) {
        parameter.mutable_grad().detach_().zero_();
      } else {
        parameter.mutable_grad().reset();
      }
    }
  });
}

int lcl_autocast_enter(int32_t device_type, int32_t enabled, int32_t dtype, lcl_autocast_state *previous) {
  return guarded([&] {
    const auto device = static_cast<at::DeviceType>(device_type);
    const lcl_autocast_state former{device_type, at::autocast::is_autocast_enabled(device) ? 1 : 0,
                                    static_cast<int32_t>(at::autocast::get_autocast_dtype(device)),
                                    at::autocast::is_autocast_cache_enabled() ? 1 : 0};
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(dtype));
    at::autocast::set_autocast_enabled(device, enabled != 0);
    at::autocast::set_autocast_cache_enabled(true);
    at::autocast::increment_nesting();
    *previous = former;
  });
}

int lcl_autocast_leave(const lcl_autocast_state *previous) {
  return guarded([&] {
    const auto device = static_cast<at::DeviceType>(previous->device_type);
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_cache_enabled(previous->cache_enabled != 0);
    at::autocast::set_autocast_enabled(device, previous->enabled != 0);
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(previous->dtype));
  });
}

int lcl_checkpoint(void *closure, lcl_run run, lcl_drop drop, const lcl_tensor *inputs, size_t count, lcl_tensor *output) {
  return guarded([&] {
    const auto owned = std::make_shared<Closure>(closure, run, drop);
    std::vector<Tensor> list;
    for (size_t i = 0; i < count; ++i) {
      list.push_back(borrow(inputs[i]));
    }
    const bool differentiable =
        at::GradMode::is_enabled() && std::any_of(list.begin(), list.end(), [](const Tensor &input) { return input.requires_grad(); });
    *output = release(differentiable ? Checkpoint::apply(owned, at::TensorList(list)) : (*owned)(list));
  });
}

int lcl_linear(lcl_tensor input, lcl_tensor weight, lcl_tensor bias, lcl_tensor *output) {
  return guarded([&] {
    const auto given = bias == nullptr ? std::nullopt : std::optional<Tensor>(borrow(bias));
    *output = release(lcl::linear(borrow(input), borrow(weight), given));
  });
}

int lcl_take_values(void *values, int32_t kind, const int64_t *sizes, size_t dimensions, void *owner, lcl_drop drop, lcl_tensor *tensor) {
  return guarded([&] {
    const std::shared_ptr<void> holder(owner, drop);
    const auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind));
    *tensor = release(at::from_blob(values, at::IntArrayRef(sizes, dimensions), [holder](void *) {}, options));
  });
}

void lcl_retain_memory(void) { c10::SetCPUAllocator(&lcl::RetainingAllocator::instance(), /*priority=*/1); }

size_t lcl_retained_bytes(void) { return lcl::RetainingAllocator::instance().mapped_bytes(); }

int lcl_set_deterministic(int32_t enabled) {
  return guarded([&] {
    if (enabled != 0) {
      // cuBLAS refuses to promise the same bits twice without it; it reads it when a GPU is first used.
      setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
      // Without it the bits of MKL's products depend on where their operands lie (1,101 of 9,072 products of small matrices differed when
      // an operand began 4 to 20 bytes later; with it none). MKL reads it at its first product.
      setenv("MKL_CBWR", "AUTO,STRICT", /*overwrite=*/0);
    }
    at::globalContext().setDeterministicAlgorithms(enabled != 0, /*warn_only=*/false);
    // An eighth of a step: every new tensor would be filled with NaN first, to show who reads what nobody has written.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicCuDNN(enabled != 0);
    at::globalContext().setBenchmarkCuDNN(false);
  });
}

int lcl_libraries(char *text, int64_t size) {
  return guarded([&] {
    const std::string version = TORCH_VERSION "\n";
    copy_text(version + at::get_cpu_capability() + "\n" + at::get_mkl_version() + "\n" + at::get_mkldnn_version(), text, size);
  });
}

int lcl_set_intra_op_threads(int32_t threads) {
  return guarded([&] {
    TORCH_CHECK(threads >= 1, "thread count is ", threads, ", must be at least 1");
    at::set_num_threads(threads);
  });
}

int lcl_set_inter_op_threads(int32_t threads) {
  return guarded([&] {
    TORCH_CHECK(threads >= 1, "thread count is ", threads, ", must be at least 1");
    at::set_num_interop_threads(threads);
  });
}

int lcl_intra_op_threads(int32_t *threads) {
  return guarded([&] { *threads = at::get_num_threads(); });
}

int lcl_cuda_load(int32_t *loaded) {
  return guarded([&] { *loaded = cuda_load() ? 1 : 0; });
}

int lcl_cuda_device_count(int32_t *count) {
  return guarded([&] { *count = cuda_device_count(); });
}

int lcl_cuda_synchronize(int32_t device) {
  return guarded([&] {
    const auto index = checked_device(device);
    c10::impl::VirtualGuardImpl(at::kCUDA).synchronizeDevice(index);
  });
}

int lcl_pin_memory(lcl_tensor tensor, lcl_tensor *pinned) {
  return guarded([&] {
    // libtorch pins for the accelerator that it finds.
    TORCH_CHECK(cuda_device_count() != 0, "there is no CUDA device to pin memory for");
    *pinned = release(borrow(tensor).pin_memory());
  });
}

struct lcl_moment {
  c10::Device device;
  c10::Event event;
};

int lcl_cuda_moment_now(int32_t device, lcl_moment **moment) {
  return guarded([&] {
    const c10::Device place(at::kCUDA, checked_device(device));
    auto noted = std::make_unique<lcl_moment>(lcl_moment{place, c10::Event(at::kCUDA)});
    noted->event.record(c10::impl::VirtualGuardImpl(at::kCUDA).getStream(place));
    *moment = noted.release();
  });
}

int lcl_cuda_copy_after(const lcl_moment *moment, const lcl_tensor *tensors, void *const *places, size_t count, size_t *failed) {
  return guarded([&] {
    *failed = count;
    at::NoGradGuard no_grad;
    const c10::impl::VirtualGuardImpl devices(at::kCUDA);
    const c10::StreamGuard beside(devices.getStreamFromGlobalPool(moment->device));
    const c10::Stream stream = devices.getStream(moment->device);
    moment->event.block(stream);
    size_t begun = 0;
    try {
      for (; begun < count; ++begun) {
        const Tensor &tensor = borrow(tensors[begun]);
        auto place = at::from_blob(places[begun], tensor.sizes(), tensor.options().device(at::kCPU));
        place.copy_(tensor, /*non_blocking=*/true);
      }
    } catch (...) {
      *failed = begun;
      // The memory is not to be given back while a copy that was begun still writes it.
      devices.synchronizeStream(stream);
      throw;
    }
    devices.synchronizeStream(stream);
  });
}

void lcl_cuda_moment_drop(lcl_moment *moment) { delete moment; }

int lcl_cuda_lock_memory(void *data, size_t bytes) {
  return guarded([&] {
    constexpr unsigned int portable = 1; // cudaHostRegisterPortable: for all devices of the process
    const int status = cuda_runtime<int (*)(void *, size_t, unsigned int)>("cudaHostRegister")(data, bytes, portable);
    if (status != 0) {
      // Else the next operation of libtorch would report it.
      cuda_runtime<int (*)()>("cudaGetLastError")();
    }
    TORCH_CHECK(status == 0, "CUDA error ", status, " when locking ", bytes, " bytes of host memory");
  });
}

int lcl_cuda_unlock_memory(void *data) {
  return guarded([&] {
    const int status = cuda_runtime<int (*)(void *)>("cudaHostUnregister")(data);
    TORCH_CHECK(status == 0, "CUDA error ", status, " when letting host memory go");
  });
}

int lcl_cuda_supports_bfloat16(int32_t device, int32_t *supported) {
  return guarded([&] {
    const auto index = checked_device(device);
    const auto get_attribute = cuda_runtime<int (*)(int *, int, int)>("cudaDeviceGetAttribute");
    constexpr int compute_capability_major = 75; // cudaDevAttrComputeCapabilityMajor
    int major = 0;
    const int status = get_attribute(&major, compute_capability_major, index);
    TORCH_CHECK(status == 0, "CUDA error ", status, " when asking device ", device, " for its compute capability");
    *supported = major >= 8 ? 1 : 0;
  });
}

int lcl_cuda_device_name(int32_t device, char *text, int64_t size) {
  return guarded([&] {
    const auto index = checked_device(device);
    // The driver, which the CUDA runtime has loaded by now. It counts devices as the runtime does.
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    TORCH_CHECK(driver != nullptr, "libtorch_cuda came without libcuda.so.1");
    const auto get_name = reinterpret_cast<int (*)(char *, int, int)>(dlsym(driver, "cuDeviceGetName"));
    dlclose(driver);
    TORCH_CHECK(get_name != nullptr, "libcuda.so.1 has no cuDeviceGetName");
    char name[256] = {};
    const int status = get_name(name, sizeof name, index);
    TORCH_CHECK(status == 0, "CUDA driver error ", status, " when asking device ", device, " for its name");
    copy_text(name, text, size);
  });
}

int lcl_cuda_memory_statistics(int32_t device, lcl_cuda_memory *memory) {
  return guarded([&] {
    const auto index = checked_device(device);
    at::globalContext().lazyInitDevice(at::kCUDA);
    const auto statistics = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(index);
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    memory->allocated = statistics.allocated_bytes[aggregate].current;
    memory->peak_allocated = statistics.allocated_bytes[aggregate].peak;
    memory->reserved = statistics.reserved_bytes[aggregate].current;
    memory->peak_reserved = statistics.reserved_bytes[aggregate].peak;
  });
}

int lcl_cuda_reset_peak_memory(int32_t device) {
  return guarded([&] {
    const auto index = checked_device(device);
    // The allocator knows no device before.
    at::globalContext().lazyInitDevice(at::kCUDA);
    c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(index);
  });
}
}
