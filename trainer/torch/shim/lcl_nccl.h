// What the separately loaded object liblcl_nccl.so gives to the shim: NCCL as a c10d::Backend. Everything else of a group goes through
// libtorch's virtual functions, so that the shim itself names no symbol of libtorch_cuda and runs where there is none.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Both sides are compiled together; an object of another build says so by another number.
#define LCL_NCCL_INTERFACE 2

typedef struct {
  const void *store; // c10::intrusive_ptr<c10d::Store>, borrowed
  int32_t rank;
  int32_t size;
  int32_t device;
  int64_t timeout; // milliseconds
} lcl_nccl_arguments;

typedef struct {
  int32_t interface; // LCL_NCCL_INTERFACE
  int32_t built_with; // NCCL_VERSION_CODE of the headers
  // The NCCL that libtorch_cuda uses here.
  int (*running)(int32_t *version);
  // `backend` is filled: a c10::intrusive_ptr<c10d::Backend>. Opens no connection yet.
  int (*form)(const lcl_nccl_arguments *arguments, void *backend);
  // Whether the communicators that were begun for this c10d::Backend have all their members. Never waits, so that the backend can be
  // aborted meanwhile.
  int (*is_ready)(const void *backend, int32_t *ready);
  // Of this thread's last failure in this object.
  const char *(*last_error)(void);
} lcl_nccl_interface;

// The object's only function.
const lcl_nccl_interface *lcl_nccl_open(void);

#ifdef __cplusplus
}
#endif
