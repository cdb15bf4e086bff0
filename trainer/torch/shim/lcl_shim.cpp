// See lcl_shim.h.
#include "lcl_shim.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// ---------------------------------------------------------------------------------------------------------------- errors

thread_local std::string last_error;

// Runs `body`; an exception becomes the thread's last error.
template <typename Body> int guarded(Body &&body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error &error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception &error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

const Tensor &borrow(lcl_tensor tensor) { return *static_cast<const Tensor *>(tensor); }

lcl_tensor release(Tensor tensor) { return new Tensor(std::move(tensor)); }

// ------------------------------------------------------------------------------------------------- linear + cross-entropy
//
// loss = Σ_r [logsumexp_v(l_rv) − l_r,label(r)] with l = hidden · weightᵀ, gradients (softmax(l) − onehot) · weight and its transpose
// · hidden. Nothing of size [P, V] may go through memory more often than needed, since V is 49,411: that traffic, not arithmetic, is
// what makes the plain form slow.
//
// On the CPU the vocabulary is cut into tiles that stay in cache. Logits are kept transposed, [tile, rows], so that everything per
// row is a vector operation over neighbouring elements. Forward over the tiles, as in FlashAttention (arXiv 2205.14135): a tile's
// logits become e = exp(l − m), m being the row's maximum within the tile; e goes into the running normaliser and, times the
// tile of the weight, into the running gradient of hidden. The gradient of the weight needs the final normaliser, so the tiles of e are
// kept, and a second walk multiplies them with hidden, whose rows are scaled by exp(m − logsumexp): the big matrix itself is
// never touched again. The label's entry of e is set to zero and enters both gradients apart, as softmax − 1 in float32, exact also
// where softmax is nearly 1.
//
// Elsewhere, and for float64, rows are cut into blocks and libtorch's own operators do the same on a block of logits.

// How it was called: what the gradients are multiplied by and which are needed.
struct LossRequest {
  double scale;
  bool hidden;
  bool weight;
};

struct LossResult {
  Tensor loss;        // scalar, float32 or float64
  Tensor grad_hidden; // undefined when not asked for
  Tensor grad_weight;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// Compiled for each level of vector instructions; the loader picks.
#define LCL_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LCL_VECTORISED
#endif
#define LCL_INLINE inline __attribute__((always_inline))

// exp for x ≤ 0: Cody-Waite reduction and the polynomial of Cephes' expf, below 2 ulp. NaN stays NaN; below −87 it is 1e-38.
LCL_INLINE float fast_exp(float x) {
  x = x < -87.0F ? -87.0F : x;
  const float magic = 12582912.0F; // 1.5 · 2²³: adding it rounds to an integer
  const float n = (x * 1.44269504088896341F + magic) - magic;
  const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

LCL_INLINE float widen(float x) { return x; }
LCL_INLINE float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
LCL_INLINE void store(float &place, float x) { place = x; }
// Round to nearest, ties to even. e is never NaN-critical here: a NaN is caught by the normaliser, which stays float32.
LCL_INLINE void store(uint16_t &place, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  place = static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

// State of every row while the tiles pass by.
struct RowState {
  float *maximum;     // over all tiles so far
  float *sum;         // of exp(l − maximum)
  float *label_logit; // where the label has been met
  float *former;      // factor that brings what was accumulated before this tile to the new maximum
  float *current;     // the same for this tile
};

// One tile of logits [entries, rows], columns begin..end of it.
template <typename Element> struct Tile {
  Element *logits;
  int64_t entries;
  int64_t rows;
  const int64_t *labels; // per row
  int64_t first_entry;   // of this tile in the vocabulary
  float *maximum;        // per row, out: m
};

// Columns handled at once: their state stays in the first-level cache, their part of a tile in the second.
constexpr int64_t column_block = 128;

template <typename Element> LCL_INLINE void exponentiate_columns(const Tile<Element> &tile, const RowState &state, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += column_block) {
    const int64_t width = std::min(column_block, end - first);
    float maximum[column_block];
    float sum[column_block];
    std::fill_n(maximum, width, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, width, 0.0F);
    for (int64_t entry = 0; entry < tile.entries; ++entry) {
      const Element *row = tile.logits + entry * tile.rows + first;
      for (int64_t i = 0; i < width; ++i) {
        const float logit = widen(row[i]);
        maximum[i] = logit > maximum[i] ? logit : maximum[i];
      }
    }
    const auto label_place = [&](int64_t column) -> Element * {
      const int64_t entry = tile.labels[column] - tile.first_entry;
      return entry >= 0 && entry < tile.entries ? tile.logits + entry * tile.rows + column : nullptr;
    };
    for (int64_t i = 0; i < width; ++i) {
      if (const Element *place = label_place(first + i)) {
        state.label_logit[first + i] = widen(*place);
      }
    }
    for (int64_t entry = 0; entry < tile.entries; ++entry) {
      Element *row = tile.logits + entry * tile.rows + first;
      for (int64_t i = 0; i < width; ++i) {
        const float e = fast_exp(widen(row[i]) - maximum[i]);
        sum[i] += e;
        store(row[i], e);
      }
    }
    for (int64_t i = 0; i < width; ++i) {
      const int64_t column = first + i;
      if (Element *place = label_place(column)) {
        store(*place, 0.0F);
      }
      tile.maximum[column] = maximum[i];
      const float former = state.maximum[column];
      const float updated = maximum[i] > former ? maximum[i] : former;
      state.former[column] = fast_exp(former - updated);
      state.current[column] = fast_exp(maximum[i] - updated);
      state.sum[column] = state.sum[column] * state.former[column] + sum[i] * state.current[column];
      state.maximum[column] = updated;
    }
  }
}

LCL_VECTORISED void exponentiate(const Tile<float> &tile, const RowState &state, int64_t begin, int64_t end) {
  exponentiate_columns(tile, state, begin, end);
}
LCL_VECTORISED void exponentiate(const Tile<uint16_t> &tile, const RowState &state, int64_t begin, int64_t end) {
  exponentiate_columns(tile, state, begin, end);
}

// sums[r] = sums[r] · former[r] + part[r] · current[r]
template <typename Element> LCL_INLINE void accumulate_row(float *sums, const Element *part, const RowState &state, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    sums[r] = sums[r] * state.former[r] + widen(part[r]) * state.current[r];
  }
}
LCL_VECTORISED void accumulate(float *sums, const float *part, const RowState &state, int64_t rows) { accumulate_row(sums, part, state, rows); }
LCL_VECTORISED void accumulate(float *sums, const uint16_t *part, const RowState &state, int64_t rows) {
  accumulate_row(sums, part, state, rows);
}

// a · bᵀ. In float32 oneDNN's kernels are used where MKL's do not use all of the processor (any but Intel's; measured on Zen 4:
// 10 to 15 % faster); the choice depends on the machine alone, so that results repeat.
Tensor product_with_transpose(const Tensor &a, const Tensor &b) {
  using Pointwise = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, std::string_view,
                           c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto onednn = []() -> std::optional<c10::TypedOperatorHandle<Pointwise>> {
#if defined(__x86_64__) && defined(__GNUC__)
    const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (schema && !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f")) {
      return schema->typed<Pointwise>();
    }
#endif
    return std::nullopt;
  }();
  if (onednn && a.scalar_type() == at::kFloat && a.size(0) > 0 && b.size(0) > 0) {
    return onednn->call(a, b, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
  }
  return at::mm(a, b.t());
}

// Bytes of kept exponentials: rows are cut into blocks so that it is not exceeded. Every further block reads and writes the
// weight's gradient once more; below 256 MiB that costs several per cent at width 384.
constexpr int64_t kept_bytes = int64_t{256} << 20;
// Elements of one tile: small enough for the second and third level of cache, large enough for the products' own blocking.
constexpr int64_t tile_elements = int64_t{3} << 19;

class CpuLoss {
public:
  CpuLoss(const Tensor &hidden, const Tensor &weight, const Tensor &labels, at::ScalarType narrow, const LossRequest &request)
      : hidden_(hidden.contiguous()), weight_(weight.contiguous()), labels_(labels.contiguous()), narrow_(narrow), request_(request) {}

  LossResult run() {
    const int64_t rows = hidden_.size(0);
    LossResult result;
    if (request_.hidden) {
      result.grad_hidden = at::empty_like(hidden_);
    }
    if (request_.weight) {
      result.grad_weight = rows == 0 ? at::zeros_like(weight_) : at::empty_like(weight_);
    }
    double loss = 0.0;
    const int64_t most = std::max<int64_t>(1, kept_bytes / (weight_.size(0) * static_cast<int64_t>(c10::elementSize(narrow_))));
    const int64_t blocks = at::divup(rows, most);
    const int64_t block = blocks == 0 ? 0 : at::divup(rows, blocks);
    for (int64_t begin = 0; begin < rows; begin += block) {
      loss += run_block(begin, std::min(block, rows - begin), result);
    }
    result.loss = at::scalar_tensor(loss * request_.scale, hidden_.options().dtype(at::kFloat));
    return result;
  }

private:
  struct Kept {
    int64_t begin;
    Tensor exponentials; // [entries, rows]
    Tensor maximum;      // [rows]
  };

  double run_block(int64_t begin, int64_t rows, LossResult &result) {
    const Tensor hidden = hidden_.narrow(0, begin, rows);
    const Tensor labels = labels_.narrow(0, begin, rows);
    const Tensor inputs = hidden.to(narrow_);
    const auto options = hidden.options().dtype(at::kFloat);
    const Tensor maximum = at::full({rows}, -std::numeric_limits<float>::infinity(), options);
    const Tensor sum = at::zeros({rows}, options), label_logit = at::empty({rows}, options);
    const Tensor former = at::empty({rows}, options), current = at::empty({rows}, options);
    const RowState state{maximum.data_ptr<float>(), sum.data_ptr<float>(), label_logit.data_ptr<float>(), former.data_ptr<float>(),
                         current.data_ptr<float>()};
    const Tensor sums = request_.hidden ? at::zeros({weight_.size(1), rows}, options) : Tensor();
    std::vector<Kept> kept;
    const int64_t vocabulary = weight_.size(0);
    const int64_t entries = std::clamp<int64_t>(tile_elements / rows / 64 * 64, 256, 8192);
    for (int64_t first = 0; first < vocabulary; first += entries) {
      const Tensor matrix = weight_.narrow(0, first, std::min(entries, vocabulary - first)).to(narrow_);
      Tensor tile = product_with_transpose(matrix, inputs);
      const Tensor tile_maximum = at::empty({rows}, options);
      exponentiate_tile(tile, labels, first, tile_maximum, state);
      if (request_.hidden) {
        accumulate_tile(sums, product_with_transpose(matrix.t(), tile.t()), state);
      }
      if (request_.weight) {
        kept.push_back({first, std::move(tile), tile_maximum});
      }
    }
    const Tensor normaliser = maximum + sum.log();
    // softmax − 1 at the label
    const Tensor slope = (label_logit - normaliser).expm1_().mul_(request_.scale);
    if (request_.hidden) {
      Tensor gradient = (sums * sum.reciprocal().mul_(request_.scale)).t() + weight_.index_select(0, labels) * slope.unsqueeze(1);
      result.grad_hidden.narrow(0, begin, rows).copy_(gradient);
    }
    if (request_.weight) {
      for (Kept &tile : kept) {
        const Tensor factors = (tile.maximum - normaliser).exp_().mul_(request_.scale);
        const Tensor scaled = (hidden * factors.unsqueeze(1)).to(narrow_);
        const Tensor part = product_with_transpose(tile.exponentials, scaled.t());
        Tensor place = result.grad_weight.narrow(0, tile.begin, part.size(0));
        begin == 0 ? place.copy_(part) : place.add_(part);
        tile.exponentials.reset();
      }
      add_label_rows(result.grad_weight, hidden * slope.unsqueeze(1), labels);
    }
    return (normaliser - label_logit).sum(at::kDouble).item<double>();
  }

  static void exponentiate_tile(const Tensor &tile, const Tensor &labels, int64_t first, const Tensor &maximum, const RowState &state) {
    const int64_t rows = tile.size(1);
    // Whole vectors of 16 to a thread, and enough of them to pay for waking it.
    constexpr int64_t unit = 16;
    at::parallel_for(0, at::divup(rows, unit), 2, [&](int64_t begin, int64_t end) {
      const auto walk = [&](auto *logits) {
        using Element = std::remove_pointer_t<decltype(logits)>;
        exponentiate(Tile<Element>{logits, tile.size(0), rows, labels.const_data_ptr<int64_t>(), first, maximum.data_ptr<float>()}, state,
                     begin * unit, std::min(end * unit, rows));
      };
      if (tile.scalar_type() == at::kFloat) {
        walk(tile.data_ptr<float>());
      } else {
        walk(reinterpret_cast<uint16_t *>(tile.data_ptr<at::BFloat16>()));
      }
    });
  }

  static void accumulate_tile(const Tensor &sums, const Tensor &part, const RowState &state) {
    const int64_t rows = sums.size(1);
    at::parallel_for(0, sums.size(0), 8, [&](int64_t begin, int64_t end) {
      for (int64_t w = begin; w < end; ++w) {
        if (part.scalar_type() == at::kFloat) {
          accumulate(sums.data_ptr<float>() + w * rows, part.const_data_ptr<float>() + w * rows, state, rows);
        } else {
          accumulate(sums.data_ptr<float>() + w * rows,
                     reinterpret_cast<const uint16_t *>(part.const_data_ptr<at::BFloat16>()) + w * rows, state, rows);
        }
      }
    });
  }

  // gradient[label(r)] += rows[r], in the order of r whatever the number of threads.
  static void add_label_rows(const Tensor &gradient, const Tensor &rows, const Tensor &labels) {
    const int64_t width = gradient.size(1);
    const float *source = rows.const_data_ptr<float>();
    const int64_t *label = labels.const_data_ptr<int64_t>();
    float *target = gradient.data_ptr<float>();
    at::parallel_for(0, width, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows.size(0); ++r) {
        for (int64_t w = begin; w < end; ++w) {
          target[label[r] * width + w] += source[r * width + w];
        }
      }
    });
  }

  Tensor hidden_, weight_, labels_;
  at::ScalarType narrow_;
  LossRequest request_;
};

// Rows whose logits are held at once by the general form: at V = 49,411 and float32 about 400 MB.
constexpr int64_t block_rows = 2048;

LossResult general_loss(const Tensor &hidden, const Tensor &weight, const Tensor &labels, at::ScalarType narrow, const LossRequest &request) {
  const auto wide = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor inputs = hidden.to(narrow);
  const Tensor matrix = weight.to(narrow);
  LossResult result;
  result.loss = at::zeros({}, hidden.options().dtype(wide));
  if (request.hidden) {
    result.grad_hidden = at::empty_like(hidden);
  }
  Tensor grad_weight = request.weight ? at::zeros_like(weight, weight.options().dtype(wide)) : Tensor();
  for (int64_t begin = 0; begin < inputs.size(0); begin += block_rows) {
    const int64_t rows = std::min(block_rows, inputs.size(0) - begin);
    const Tensor chunk = inputs.narrow(0, begin, rows);
    const Tensor label = labels.narrow(0, begin, rows).unsqueeze(1);
    Tensor logits = at::mm(chunk, matrix.t()).to(wide);
    const Tensor normaliser = at::logsumexp(logits, 1, true);
    result.loss.add_((normaliser - logits.gather(1, label)).sum());
    if (!request.hidden && !request.weight) {
      continue;
    }
    logits.sub_(normaliser).exp_();
    logits.scatter_(1, label, logits.gather(1, label).sub_(1.0));
    const Tensor slope = logits.mul_(request.scale).to(narrow);
    logits.reset();
    if (request.hidden) {
      result.grad_hidden.narrow(0, begin, rows).copy_(at::mm(slope, matrix));
    }
    if (request.weight) {
      grad_weight.add_(at::mm(slope.t(), chunk));
    }
  }
  result.loss.mul_(request.scale);
  result.grad_weight = request.weight ? grad_weight.to(weight.scalar_type()) : Tensor();
  return result;
}

// Gradients on their way from forward to backward.
struct ReadyGradients : torch::CustomClassHolder {
  Tensor hidden;
  Tensor weight;
};

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(AutogradContext *ctx, const Tensor &hidden, const Tensor &weight, const Tensor &labels, const LossRequest &request) {
    const auto device = hidden.device().type();
    const auto narrow = at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : hidden.scalar_type();
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const bool tiled = device == at::kCPU && weight.scalar_type() == at::kFloat && (narrow == at::kFloat || narrow == at::kBFloat16);
    LossResult result = tiled ? CpuLoss(hidden.to(at::kFloat), weight, labels, narrow, request).run()
                              : general_loss(hidden, weight, labels, narrow, request);
    auto ready = c10::make_intrusive<ReadyGradients>();
    ready->hidden = result.grad_hidden.defined() ? result.grad_hidden.to(hidden.scalar_type()) : Tensor();
    ready->weight = result.grad_weight;
    ctx->saved_data["gradients"] = c10::IValue::make_capsule(std::move(ready));
    return result.loss;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grad_outputs) {
    const auto ready = c10::static_intrusive_pointer_cast<ReadyGradients>(ctx->saved_data["gradients"].toCapsule());
    const Tensor &factor = grad_outputs[0];
    // Reading the factor costs nothing on the CPU; elsewhere it would wait for the device.
    const bool unit = factor.is_cpu() && factor.item<double>() == 1.0;
    const auto give = [&](Tensor &gradient) {
      TORCH_CHECK(gradient.defined(), "the gradients of the fused linear layer and cross-entropy were already taken by an earlier backward pass");
      // Without a copy the gradient itself becomes the parameter's: it must have no second owner.
      return unit ? std::exchange(gradient, Tensor()) : gradient * factor.to(gradient.scalar_type());
    };
    return {ctx->needs_input_grad(0) ? give(ready->hidden) : Tensor(), ctx->needs_input_grad(1) ? give(ready->weight) : Tensor(), Tensor(),
            Tensor()};
  }
};

Tensor linear_cross_entropy(const Tensor &hidden, const Tensor &weight, const Tensor &labels, double scale) {
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && labels.dim() == 1, "expects hidden [P, W], weight [V, W] and labels [P], got ",
              hidden.sizes(), ", ", weight.sizes(), " and ", labels.sizes());
  TORCH_CHECK(hidden.size(1) == weight.size(1) && hidden.size(0) == labels.size(0), "sizes do not fit: hidden ", hidden.sizes(),
              ", weight ", weight.sizes(), ", labels ", labels.sizes());
  TORCH_CHECK(labels.scalar_type() == at::kLong, "labels are ", labels.scalar_type(), ", expected int64");
  TORCH_CHECK(weight.size(0) > 0 && weight.size(1) > 0, "the weight is empty: ", weight.sizes());
  if (labels.is_cpu() && labels.numel() > 0) {
    const auto [least, greatest] = at::aminmax(labels);
    TORCH_CHECK(least.item<int64_t>() >= 0 && greatest.item<int64_t>() < weight.size(0), "labels lie in ", least.item<int64_t>(), "..=",
                greatest.item<int64_t>(), ", must lie in 0..", weight.size(0));
  }
  const bool gradients = at::GradMode::is_enabled();
  return LinearCrossEntropy::apply(hidden, weight, labels,
                                   LossRequest{scale, gradients && hidden.requires_grad(), gradients && weight.requires_grad()});
}

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

// Loads libtorch_cuda from libtorch_cpu's folder; it registers itself with c10. False when it is not there or cannot be loaded.
bool cuda_load() {
  static const bool loaded = [] {
    if (c10::impl::hasDeviceGuardImpl(at::kCUDA)) {
      return true;
    }
    Dl_info info;
    if (dladdr(reinterpret_cast<const void *>(&at::get_num_threads), &info) == 0 || info.dli_fname == nullptr) {
      return false;
    }
    const std::string path(info.dli_fname);
    const auto folder = path.substr(0, path.rfind('/') + 1);
    return dlopen((folder + "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr;
  }();
  return loaded;
}

int32_t cuda_device_count() { return cuda_load() ? c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount() : 0; }

c10::DeviceIndex checked_device(int32_t device) {
  const int32_t count = cuda_device_count();
  TORCH_CHECK(device >= 0 && device < count, "there is no CUDA device ", device, ": ", count, " found");
  return static_cast<c10::DeviceIndex>(device);
}

} // namespace

// --------------------------------------------------------------------------------------------------------------- interface

extern "C" {

const char *lcl_last_error(void) { return last_error.c_str(); }

void lcl_set_error(const char *message) { last_error = message; }

int lcl_linear_cross_entropy(lcl_tensor hidden, lcl_tensor weight, lcl_tensor labels, double scale, lcl_tensor *loss) {
  return guarded([&] { *loss = release(linear_cross_entropy(borrow(hidden), borrow(weight), borrow(labels), scale)); });
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

int lcl_set_deterministic(int32_t enabled) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(enabled != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicCuDNN(enabled != 0);
    at::globalContext().setBenchmarkCuDNN(false);
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
  return guarded([&] { c10::impl::VirtualGuardImpl(at::kCUDA).synchronizeDevice(checked_device(device)); });
}

int lcl_cuda_supports_bfloat16(int32_t device, int32_t *supported) {
  return guarded([&] {
    const auto index = checked_device(device);
    const auto capability = c10::impl::getDeviceGuardImpl(at::kCUDA)->getDeviceCapability(at::Device(at::kCUDA, index));
    *supported = capability.capability_data.capability_bits != 0 ? 1 : 0;
  });
}

int lcl_cuda_memory_statistics(int32_t device, lcl_cuda_memory *memory) {
  return guarded([&] {
    const auto index = checked_device(device);
    const auto statistics = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(index);
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    memory->allocated = statistics.allocated_bytes[aggregate].current;
    memory->peak_allocated = statistics.allocated_bytes[aggregate].peak;
    memory->reserved = statistics.reserved_bytes[aggregate].current;
    memory->peak_reserved = statistics.reserved_bytes[aggregate].peak;
  });
}

int lcl_cuda_reset_peak_memory(int32_t device) {
  return guarded([&] { c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(checked_device(device)); });
}
}
