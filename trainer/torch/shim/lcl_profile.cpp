// A trace of what libtorch does, by its own profiler; see lcl_shim.h.
#include "guarded.h"

#include <set>
#include <string>

#include <torch/csrc/autograd/profiler_kineto.h>

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

int lcl_profile_begin(int32_t with_cuda) {
  return lcl::guarded([&] {
    const ProfilerConfig config(ProfilerState::KINETO);
    std::set<ActivityType> activities{ActivityType::CPU};
    if (with_cuda != 0) {
      activities.insert(ActivityType::CUDA);
    }
    profiler::prepareProfiler(config, activities);
    profiler::enableProfiler(config, activities);
  });
}

int lcl_profile_end(const char *path) {
  return lcl::guarded([&] {
    const auto result = profiler::disableProfiler();
    if (path != nullptr) {
      result->save(path);
    }
  });
}
