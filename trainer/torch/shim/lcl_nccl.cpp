// See lcl_nccl.h. Compiled with the very headers that libtorch_cuda 2.11.0 was: CUDA 13.0 and NCCL 2.28.9.
#include "lcl_nccl.h"

#include "guarded.h"

#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>

#define USE_C10D_NCCL
#include <torch/csrc/cuda/nccl.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

static_assert(NCCL_VERSION_CODE == 22809, "libtorch 2.11.0 was built with NCCL 2.28.9: its configuration travels by value");
static_assert(CUDART_VERSION / 1000 == 13, "libtorch 2.11.0 was built with CUDA 13.0");
// What libtorch_cuda 2.11.0 on x86-64 allocates. cuda_declarations/ stands in for the headers of cuBLAS, cuSPARSE and cuSOLVER.
static_assert(sizeof(c10d::ProcessGroupNCCL) == 1112, "ProcessGroupNCCL is another than this file was made for");
static_assert(sizeof(c10d::ProcessGroupNCCL::Options) == 248, "its options are others than this file was made for");
static_assert(sizeof(c10d::NCCLComm) == 216, "its communicators are others than this file was made for");

namespace {

thread_local std::string last_error;

void set(const char *name, const std::string &value) { setenv(name, value.c_str(), /*overwrite=*/1); }

// What libtorch and NCCL read when a group is made. A group ends by its members' decision (lcl_collectives.cpp), never by a thread of
// libtorch that aborts the process; a communicator whose peers are gone must not block its own making.
void prepare_environment(std::chrono::milliseconds timeout) {
  set("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0");
  set("TORCH_NCCL_ENABLE_MONITORING", "0");
  // Else every member asks the store once a second whether another one wants a dump, and says so when the store is gone.
  set("TORCH_NCCL_DUMP_ON_TIMEOUT", "0");
  set("TORCH_NCCL_NONBLOCKING_TIMEOUT", std::to_string(std::chrono::ceil<std::chrono::seconds>(timeout).count()));
  // Connections belong to the making of a communicator, which can be aborted. Those that the first operation makes cannot: libtorch would
  // wait for them in a loop that an abort does not end.
  setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0);
  // NVLink SHARP needs all GPUs of a domain to come and go together. Who wants it may say so.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
}

int running(int32_t *version) {
  return lcl::guarded([&] { *version = static_cast<int32_t>(torch::cuda::nccl::version()); });
}

int form(const lcl_nccl_arguments *arguments, void *backend) {
  return lcl::guarded([&] {
    const std::chrono::milliseconds timeout(arguments->timeout);
    prepare_environment(timeout);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    options->config.blocking = 0;
    const auto &store = *static_cast<const c10::intrusive_ptr<c10d::Store> *>(arguments->store);
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, arguments->rank, arguments->size, options);
    group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(arguments->device)));
    *static_cast<c10::intrusive_ptr<c10d::Backend> *>(backend) = c10::static_intrusive_pointer_cast<c10d::Backend>(group);
  });
}

// The communicators of a backend, and what guards them. libtorch has no way to ask how far one is that does not wait for it, holding the lock
// that an abort needs.
struct Reach : c10d::ProcessGroupNCCL {
  static auto &communicators(c10d::ProcessGroupNCCL &group) { return group.*(&Reach::devNCCLCommMap_); }
  static std::mutex &lock(c10d::ProcessGroupNCCL &group) { return group.*(&Reach::mutex_); }
};
struct ReachCommunicator : c10d::NCCLComm {
  static auto &lock(c10d::NCCLComm &communicator) { return communicator.*(&ReachCommunicator::mutex_); }
};

// NCCL's own handle is private: an explicit instantiation may name it.
struct Handle {
  using Member = ncclComm_t c10d::NCCLComm::*;
  friend Member member_of(Handle);
};
template <typename Tag, typename Tag::Member member> struct Expose {
  friend typename Tag::Member member_of(Tag) { return member; }
};
template struct Expose<Handle, &c10d::NCCLComm::ncclComm_>;

// The result of the last operation that NCCL began without waiting for it.
ncclResult_t state_of(ncclComm_t communicator) {
  // NCCL is in the process with libtorch_cuda; this object is linked against nothing.
  using GetAsyncError = ncclResult_t (*)(ncclComm_t, ncclResult_t *);
  static const auto get_async_error = reinterpret_cast<GetAsyncError>(dlsym(RTLD_DEFAULT, "ncclCommGetAsyncError"));
  TORCH_CHECK(get_async_error != nullptr, "libtorch_cuda came without ncclCommGetAsyncError");
  ncclResult_t state = ncclInProgress;
  const ncclResult_t asked = get_async_error(communicator, &state);
  return asked == ncclSuccess ? state : asked;
}

int is_ready(const void *backend, int32_t *ready) {
  return lcl::guarded([&] {
    auto &group = *static_cast<c10d::ProcessGroupNCCL *>(static_cast<const c10::intrusive_ptr<c10d::Backend> *>(backend)->get());
    const std::lock_guard<std::mutex> lock(Reach::lock(group));
    auto &communicators = Reach::communicators(group);
    *ready = communicators.empty() ? 0 : 1;
    for (auto &[device, communicator] : communicators) {
      const std::lock_guard guard(ReachCommunicator::lock(*communicator));
      const ncclComm_t handle = (*communicator).*member_of(Handle());
      TORCH_CHECK(handle != nullptr, "NCCL has no communicator");
      const ncclResult_t state = state_of(handle);
      if (state == ncclInProgress) {
        *ready = 0;
        continue;
      }
      TORCH_CHECK(state == ncclSuccess, "NCCL: ", c10d::ncclGetErrorWithVersion(state), ": ",
                  c10d::getNcclErrorDetailStr(state, std::nullopt));
    }
  });
}

const char *read_last_error() { return last_error.c_str(); }

} // namespace

// guarded.h reports here; the shim's own function of this name is not visible to an object that is loaded.
extern "C" __attribute__((visibility("hidden"))) void lcl_set_error(const char *message) { last_error = message; }

extern "C" __attribute__((visibility("default"))) const lcl_nccl_interface *lcl_nccl_open(void) {
  static const lcl_nccl_interface interface{LCL_NCCL_INTERFACE, NCCL_VERSION_CODE, running, form, is_ready, read_last_error};
  return &interface;
}
