// Matrix products in float32 by whichever library is faster on this processor.
//
// libtorch multiplies by MKL, which does not use all of any processor but Intel's. oneDNN does: on Zen 4 with AVX-512 it is 5 to 14 % faster
// where its first matrix lies row by row, and slower where that is transposed. The choice depends on the machine and on shapes alone, so
// that results repeat.
#pragma once

#include <optional>
#include <string_view>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lcl {

using at::Tensor;

using Pointwise = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, std::string_view,
                         c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// oneDNN's product, where it is the faster one.
inline const std::optional<c10::TypedOperatorHandle<Pointwise>> &onednn() {
  static const auto handle = []() -> std::optional<c10::TypedOperatorHandle<Pointwise>> {
#if defined(__x86_64__) && defined(__GNUC__)
    const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (schema && !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f")) {
      return schema->typed<Pointwise>();
    }
#endif
    return std::nullopt;
  }();
  return handle;
}

inline bool takes_onednn(const Tensor &a, const Tensor &b) {
  return onednn() && a.is_cpu() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat && a.dim() == 2 && a.size(0) > 0 &&
         b.size(0) > 0;
}

// a · bᵀ + bias
inline Tensor by_onednn(const Tensor &a, const Tensor &b, const std::optional<Tensor> &bias) {
  return onednn()->call(a, b, bias, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

// a · bᵀ
inline Tensor product_with_transpose(const Tensor &a, const Tensor &b) {
  return takes_onednn(a, b) ? by_onednn(a, b, std::nullopt) : at::mm(a, b.t());
}

// A linear layer whose products are oneDNN's, but for a gradient that MKL forms faster.
struct OnednnLinear : torch::autograd::Function<OnednnLinear> {
  static Tensor forward(torch::autograd::AutogradContext *ctx, const Tensor &input, const Tensor &weight, const std::optional<Tensor> &bias) {
    ctx->save_for_backward({input, weight});
    ctx->saved_data["bias"] = bias.has_value();
    return by_onednn(input, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx, torch::autograd::variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1];
    const Tensor gradient = gradients[0].contiguous();
    torch::autograd::variable_list found(3);
    if (ctx->needs_input_grad(0)) {
      found[0] = by_onednn(gradient, weight.t(), std::nullopt);
    }
    if (ctx->needs_input_grad(1)) {
      const bool narrows = weight.size(1) > weight.size(0);
      found[1] = narrows ? by_onednn(gradient.t(), input.t(), std::nullopt) : at::mm(gradient.t(), input);
    }
    // One that is not there is no input to ask about.
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) {
      found[2] = gradient.sum(0);
    }
    return found;
  }
};

// input [T, in] · weightᵀ + bias
inline Tensor linear(const Tensor &input, const Tensor &weight, const std::optional<Tensor> &bias) {
  if (!takes_onednn(input, weight) || at::autocast::is_autocast_enabled(at::kCPU)) {
    return at::linear(input, weight, bias);
  }
  return OnednnLinear::apply(input, weight, bias);
}

} // namespace lcl
