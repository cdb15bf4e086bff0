// Collectives over libtorch's c10d, as a C interface. Conventions: see lcl_shim.h. `lcl_last_error` tells what failed.
#pragma once

#include "lcl_nccl.h"
#include "lcl_shim.h"

#ifdef __cplusplus
extern "C" {
#endif

// A key-value store implemented by the caller. Functions are called from any thread, return 0, or 1 after `lcl_set_error`.
// Strings are `size` bytes of UTF-8 without a NUL. Time-outs are milliseconds, above 0.
typedef struct {
  const char *data;
  size_t size;
} lcl_string;
typedef struct {
  void *data;
  int (*set)(void *data, lcl_string key, const uint8_t *value, size_t size, int64_t timeout);
  // Waits for the key; hands its value to `lcl_bytes_assign(value, …)`.
  int (*get)(void *data, lcl_string key, void *value, int64_t timeout);
  int (*compare_set)(void *data, lcl_string key, lcl_string expected, lcl_string desired, void *value, int64_t timeout);
  int (*add)(void *data, lcl_string key, int64_t amount, int64_t *sum, int64_t timeout);
  int (*remove)(void *data, lcl_string key, int32_t *removed, int64_t timeout);
  int (*check)(void *data, const lcl_string *keys, size_t count, int32_t *present, int64_t timeout);
  int (*count)(void *data, int64_t *keys, int64_t timeout);
  int (*wait)(void *data, const lcl_string *keys, size_t count, int64_t timeout);
  // Called exactly once, also when `lcl_group_form` fails.
  void (*drop)(void *data);
} lcl_store;
void lcl_bytes_assign(void *value, const uint8_t *data, size_t size);

// A listening socket on an address of this host, to form one group with.
typedef struct lcl_device lcl_device;
int lcl_device_open(const char *host, lcl_device **device);
void lcl_device_drop(lcl_device *device);

// A process group. One thread at a time may use it; after an error only `lcl_group_drop` may be called.
typedef struct lcl_group lcl_group;
typedef struct {
  lcl_store store;
  const char *prefix;
  const lcl_device *device;
  int32_t rank;
  int32_t size;
  int64_t timeout;
} lcl_group_arguments;
int lcl_group_form(const lcl_group_arguments *arguments, lcl_group **group);
// Adds NCCL for tensors on CUDA device `device`, and waits for all members. libtorch_cuda is loaded.
int lcl_group_add_nccl(lcl_group *group, const lcl_nccl_interface *nccl, int32_t device, int64_t timeout);
// Ends what waits, and waits up to `grace` milliseconds for the group's threads to end. What has not ended by then goes on by itself and owns
// what it uses: Gloo's threads until their operation's time-out, NCCL half a second or, when a driver hangs, for ever. `gone` is called with
// `context` once, from any thread, perhaps before this returns: when NCCL is gone, or at once when the group has none. A process that exits
// waits some seconds for it. The group's sockets have to be shut down before.
typedef void (*lcl_gone)(void *context);
void lcl_group_drop(lcl_group *group, int64_t grace, lcl_gone gone, void *context);

// Ends the group's operations from any thread: pending ones and later ones fail with `reason`. It may outlive the group.
// With NCCL `fire` aborts the communicator, which may take long.
typedef struct lcl_interrupter lcl_interrupter;
lcl_interrupter *lcl_group_interrupter(lcl_group *group);
void lcl_interrupter_fire(lcl_interrupter *interrupter, const char *reason);
void lcl_interrupter_drop(lcl_interrupter *interrupter);

// Tensors of an operation lie in one place: host memory, or the device of `lcl_group_add_nccl`.
int lcl_group_all_reduce(lcl_group *group, lcl_tensor tensor, int64_t timeout);
int lcl_group_broadcast(lcl_group *group, lcl_tensor tensor, int32_t root, int64_t timeout);
// `outputs`: one tensor of the input's shape and type for every rank.
int lcl_group_all_gather(lcl_group *group, lcl_tensor input, lcl_tensor *outputs, size_t count, int64_t timeout);
// `input_counts[r]` numbers of `input` go to rank r, `output_counts[r]` come from it; `count` is the number of ranks.
int lcl_group_all_to_all(lcl_group *group, lcl_tensor input, const int64_t *input_counts, lcl_tensor output,
                         const int64_t *output_counts, size_t count, int64_t timeout);
int lcl_group_send(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout);
int lcl_group_receive(lcl_group *group, lcl_tensor tensor, int32_t rank, int32_t tag, int64_t timeout);
// A tensor in host memory that comes from a rank or goes to it.
typedef struct {
  lcl_tensor tensor;
  int32_t rank;
  int32_t tag;
} lcl_passing;
// Receives all of `incoming` while all of `outgoing` is sent.
int lcl_group_relay(lcl_group *group, const lcl_passing *incoming, size_t incoming_count, const lcl_passing *outgoing,
                    size_t outgoing_count, int64_t timeout);

// Sums of gradients, overlapped with the backward pass. `parameters` are leaves that require gradients, in the same order everywhere.
typedef struct {
  size_t first_bucket_bytes;
  size_t bucket_bytes;
  int32_t compresses; // whether float32 travels as bfloat16 and is summed in it
} lcl_bucket_options;
int lcl_group_attach(lcl_group *group, lcl_tensor *parameters, size_t count, const lcl_bucket_options *options);
// From now until every parameter's gradient was accumulated once more, gradients are summed over the members.
int lcl_group_prepare(lcl_group *group, int64_t timeout);
// Which parameters had a gradient accumulated since `lcl_group_prepare`.
int lcl_group_reached(lcl_group *group, uint8_t *reached, size_t count);
// Fails unless every bucket was summed without an error since `lcl_group_prepare`.
int lcl_group_finish(lcl_group *group);
// Operations that this process has started in any group, and nanoseconds that it has waited for them. Never fails.
void lcl_operations(uint64_t *started, uint64_t *waited);
// Whether the sum of a bucket has failed since `lcl_group_prepare`; the reason is then the last error.
int lcl_group_bucket_failure(lcl_group *group, int32_t *failed);
// From now on `observer` is called with the number of every bucket whose sum is about to start, in any group of the process.
void lcl_observe_buckets(void (*observer)(int index));

#ifdef __cplusplus
}
#endif
