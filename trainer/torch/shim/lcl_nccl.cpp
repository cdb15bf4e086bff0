// See lcl_nccl.h. Compiled with the very headers that libtorch_cuda 2.11.0 was: CUDA 13.0 and NCCL 2.28.9.
#include "lcl_nccl.h"

#include "guarded.h"

#include <chrono>
#include <cstdlib>
#include <string>

#define USE_C10D_NCCL
#include <torch/csrc/cuda/nccl.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

static_assert(NCCL_VERSION_CODE == 22809, "libtorch 2.11.0 was built with NCCL 2.28.9: its configuration travels by value");
static_assert(CUDART_VERSION / 1000 == 13, "libtorch 2.11.0 was built with CUDA 13.0");
// What libtorch_cuda 2.11.0 on x86-64 allocates. cuda_declarations/ stands in for the headers of cuBLAS, cuSPARSE and cuSOLVER.
static_assert(sizeof(c10d::ProcessGroupNCCL) == 1112, "ProcessGroupNCCL is another than this file was made for");
static_assert(sizeof(c10d::ProcessGroupNCCL::Options) == 248, "its options are others than this file was made for");

namespace {

thread_local std::string last_error;

void set(const char *name, const std::string &value) { setenv(name, value.c_str(), /*overwrite=*/1); }

// What libtorch and NCCL read when a group is made. A group ends by its members' decision (lcl_collectives.cpp), never by a thread of
// libtorch that aborts the process; a communicator whose peers are gone must not block its own making.
void prepare_environment(std::chrono::milliseconds timeout) {
  set("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0");
  set("TORCH_NCCL_ENABLE_MONITORING", "0");
  set("TORCH_NCCL_NONBLOCKING_TIMEOUT", std::to_string(std::chrono::ceil<std::chrono::seconds>(timeout).count()));
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

const char *read_last_error() { return last_error.c_str(); }

} // namespace

// guarded.h reports here; the shim's own function of this name is not visible to an object that is loaded.
extern "C" __attribute__((visibility("hidden"))) void lcl_set_error(const char *message) { last_error = message; }

extern "C" __attribute__((visibility("default"))) const lcl_nccl_interface *lcl_nccl_open(void) {
  static const lcl_nccl_interface interface{LCL_NCCL_INTERFACE, NCCL_VERSION_CODE, running, form, read_last_error};
  return &interface;
}
