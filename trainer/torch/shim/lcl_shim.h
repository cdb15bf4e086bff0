// What tch 0.24 lacks, as a C interface over libtorch's C++ one.
//
// Conventions:
// - a `lcl_tensor` is an `at::Tensor*`, as in tch; arguments are borrowed, results are new and owned by the caller;
// - every function that can fail returns 0, or 1 after storing a message for `lcl_last_error` of the calling thread;
// - no C++ exception ever leaves a function.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *lcl_tensor;

// The message of the last failure on this thread; valid until the next failure on it.
const char *lcl_last_error(void);

// Fused linear + cross-entropy: scale · Σ over rows of logsumexp(hidden·weightᵀ) − (hidden·weightᵀ)[label]. float32 (float64 for float64 input).
// `terms`, unless null, becomes the terms of this sum, one a row, not scaled and outside of the graph.
int lcl_linear_cross_entropy(lcl_tensor hidden, lcl_tensor weight, lcl_tensor labels, double scale, lcl_tensor *loss, lcl_tensor *terms);

// Optimizer. `parameters` have defined gradients where they take part; the others are left alone.
typedef struct {
  lcl_tensor *parameters;
  lcl_tensor *first_moments;
  lcl_tensor *second_moments;
  size_t count;
  int64_t step; // 1 for the first update
  double learning_rate;
  double beta1;
  double beta2;
  double weight_decay;
  double epsilon;
  double gradient_scale; // gradients are multiplied by it first; 1 leaves them alone
} lcl_adamw_arguments;
int lcl_adamw_step(const lcl_adamw_arguments *arguments);
int lcl_gradient_norm(lcl_tensor *parameters, size_t count, double *norm);
int lcl_scale_gradients(lcl_tensor *parameters, size_t count, double factor);
// All gradients, contiguous, zero where there is none; the parameters have none afterwards.
int lcl_take_gradients(lcl_tensor *parameters, size_t count, lcl_tensor *gradients);
// The parameters share these gradients, each of its parameter's shape.
int lcl_set_gradients(lcl_tensor *parameters, size_t count, lcl_tensor *gradients);
// sums[i] += next[i].
int lcl_add_tensors(lcl_tensor *sums, lcl_tensor *next, size_t count);
int lcl_zero_gradients(lcl_tensor *parameters, size_t count, int keep_memory);

// Autocast of one device type on this thread.
typedef struct {
  int32_t device_type;
  int32_t enabled;
  int32_t dtype;
  int32_t cache_enabled;
} lcl_autocast_state;
int lcl_autocast_enter(int32_t device_type, int32_t enabled, int32_t dtype, lcl_autocast_state *previous);
int lcl_autocast_leave(const lcl_autocast_state *previous);

// Activation checkpointing. `run(closure, inputs, count, output)` returns 0 and a new tensor, or 1 after `lcl_set_error`.
// `drop(closure)` is called exactly once, also when this function fails.
typedef int (*lcl_run)(void *closure, const lcl_tensor *inputs, size_t count, lcl_tensor *output);
typedef void (*lcl_drop)(void *closure);
int lcl_checkpoint(void *closure, lcl_run run, lcl_drop drop, const lcl_tensor *inputs, size_t count, lcl_tensor *output);
void lcl_set_error(const char *message);

// Process-wide switches.
void lcl_retain_memory(void);
size_t lcl_retained_bytes(void);
int lcl_set_deterministic(int32_t enabled);
// libtorch's version, the instruction set that it has chosen, MKL's version, oneDNN's version: a line each. `size` counts the NUL.
int lcl_libraries(char *text, int64_t size);
int lcl_set_intra_op_threads(int32_t threads);
int lcl_set_inter_op_threads(int32_t threads);
int lcl_intra_op_threads(int32_t *threads);

// A linear layer: input [T, in] · weight [out, in] transposed + bias [out], which may be null.
int lcl_linear(lcl_tensor input, lcl_tensor weight, lcl_tensor bias, lcl_tensor *output);

// A tensor on the host over memory of the caller's. `drop` is called with `owner` once nobody needs it any more, also on an error.
int lcl_take_values(void *values, int32_t kind, const int64_t *sizes, size_t dimensions, void *owner, lcl_drop drop, lcl_tensor *tensor);

// CUDA; all may be called where there is none.
int lcl_cuda_load(int32_t *loaded);
int lcl_cuda_device_count(int32_t *count);
int lcl_cuda_synchronize(int32_t device);
// A copy in memory that the GPU can read while the processor goes on.
int lcl_pin_memory(lcl_tensor tensor, lcl_tensor *pinned);
// Copies from a device to host memory beside what it is told next. `lcl_cuda_moment_now` notes what it has been told so far;
// `lcl_cuda_copy_after` copies, on a stream of its own, what the tensors are after that into memory of their sizes, and returns when the bytes
// are there. On an error `*failed` is the number of the tensor, `count` when it is not known which.
typedef struct lcl_moment lcl_moment;
int lcl_cuda_moment_now(int32_t device, lcl_moment **moment);
int lcl_cuda_copy_after(const lcl_moment *moment, const lcl_tensor *tensors, void *const *places, size_t count, size_t *failed);
void lcl_cuda_moment_drop(lcl_moment *moment);
// Page-locks memory that is there already, so that a GPU writes it without the processor's help; and lets it go again.
int lcl_cuda_lock_memory(void *data, size_t bytes);
int lcl_cuda_unlock_memory(void *data);
int lcl_cuda_supports_bfloat16(int32_t device, int32_t *supported);
int lcl_cuda_device_name(int32_t device, char *text, int64_t size);
typedef struct {
  int64_t allocated;
  int64_t peak_allocated;
  int64_t reserved;
  int64_t peak_reserved;
} lcl_cuda_memory;
int lcl_cuda_memory_statistics(int32_t device, lcl_cuda_memory *memory);
int lcl_cuda_reset_peak_memory(int32_t device);

// Records what this thread has libtorch do, kernels of CUDA included if so told, and writes it as a trace of Chrome's format; without a path
// it is dropped.
int lcl_profile_begin(int32_t with_cuda);
int lcl_profile_end(const char *path);

#ifdef __cplusplus
}
#endif
