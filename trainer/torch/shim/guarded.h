// Shared by the shim's files: how exceptions become the last error.
#pragma once

#include "lcl_shim.h"

#include <exception>

#include <ATen/ATen.h>

namespace lcl {

// Runs `body`; an exception becomes the thread's last error.
template <typename Body> int guarded(Body &&body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error &error) {
    lcl_set_error(error.what_without_backtrace());
  } catch (const std::exception &error) {
    lcl_set_error(error.what());
  } catch (...) {
    lcl_set_error("unknown C++ exception");
  }
  return 1;
}

inline const at::Tensor &borrow(lcl_tensor tensor) { return *static_cast<const at::Tensor *>(tensor); }

} // namespace lcl
