// The head of a language model: linear layer and cross-entropy in one, forward and backward.
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
// never touched again. The label's entry of e is zero;
// it enters the normaliser and both gradients apart, in float32, so that loss and gradient are exact also where the label's softmax
// is nearly 1: a sum that holds 1 has no digits left for the rest.
//
// Elsewhere, and for float64, rows are cut into blocks and libtorch's own operators do the same on a block of logits.
#pragma once

#include "products.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lcl {

using at::Tensor;

// How it was called: what the gradients are multiplied by, which are needed, and whether each row's term is asked for.
struct LossRequest {
  double scale;
  bool hidden;
  bool weight;
  Tensor *terms; // [P], not scaled; null when not asked for
};

struct LossResult {
  Tensor loss;        // scalar, float32 or float64
  Tensor grad_hidden; // undefined when not asked for
  Tensor grad_weight;
};

// Where the rows' terms go; undefined when nobody asks.
inline Tensor place_for_terms(const LossRequest &request, const Tensor &hidden, at::ScalarType kind) {
  if (request.terms == nullptr) {
    return {};
  }
  *request.terms = at::empty({hidden.size(0)}, hidden.options().dtype(kind).requires_grad(false));
  return *request.terms;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// Compiled for each level of vector instructions; the loader picks.
#define LCL_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LCL_VECTORISED
#endif
#define LCL_INLINE inline __attribute__((always_inline))

// exp for x ≤ 0: Cody-Waite reduction and the polynomial of Cephes' expf, below 2 ulp. NaN stays NaN; below −87 it is 0.
LCL_INLINE float fast_exp(float argument) {
  const bool vanishes = argument < -87.0F;
  const float x = vanishes ? -87.0F : argument;
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
  return vanishes ? 0.0F : p * power;
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
  float *sum;         // of exp(l − maximum), the label left out
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
// Entries summed before they join the sum over the tile; about the square root of a tile's entries.
constexpr int64_t summed_entries = 64;

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
      if (Element *place = label_place(first + i)) {
        state.label_logit[first + i] = widen(*place);
        store(*place, -std::numeric_limits<float>::infinity());
      }
    }
    // Sums of sums: the rounding error of one long sum would show in the sixth digit of the loss.
    for (int64_t group = 0; group < tile.entries; group += summed_entries) {
      float partial[column_block];
      std::fill_n(partial, width, 0.0F);
      for (int64_t entry = group; entry < std::min(group + summed_entries, tile.entries); ++entry) {
        Element *row = tile.logits + entry * tile.rows + first;
        for (int64_t i = 0; i < width; ++i) {
          const float e = fast_exp(widen(row[i]) - maximum[i]);
          partial[i] += e;
          store(row[i], e);
        }
      }
      for (int64_t i = 0; i < width; ++i) {
        sum[i] += partial[i];
      }
    }
    for (int64_t i = 0; i < width; ++i) {
      const int64_t column = first + i;
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

LCL_VECTORISED static void exponentiate(const Tile<float> &tile, const RowState &state, int64_t begin, int64_t end) {
  exponentiate_columns(tile, state, begin, end);
}
LCL_VECTORISED static void exponentiate(const Tile<uint16_t> &tile, const RowState &state, int64_t begin, int64_t end) {
  exponentiate_columns(tile, state, begin, end);
}

// sums[r] = sums[r] · former[r] + part[r] · current[r]
template <typename Element> LCL_INLINE void accumulate_row(float *sums, const Element *part, const RowState &state, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    sums[r] = sums[r] * state.former[r] + widen(part[r]) * state.current[r];
  }
}
LCL_VECTORISED static void accumulate(float *sums, const float *part, const RowState &state, int64_t rows) { accumulate_row(sums, part, state, rows); }
LCL_VECTORISED static void accumulate(float *sums, const uint16_t *part, const RowState &state, int64_t rows) {
  accumulate_row(sums, part, state, rows);
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
    terms_ = place_for_terms(request_, hidden_, at::kFloat);
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
    const Tensor below = label_logit - maximum;
    const Tensor label_share = below.exp();
    // log(sum + share) by way of log1p: exact where the share is 1 and the sum is small.
    const Tensor log_sum = (sum + (label_share - 1.0)).log1p_();
    sum.add_(label_share);
    const Tensor normaliser = maximum + log_sum;
    const Tensor label_log_probability = below - log_sum;
    // softmax − 1 at the label
    const Tensor slope = label_log_probability.expm1().mul_(request_.scale);
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
    if (terms_.defined()) {
      terms_.narrow(0, begin, rows).copy_(label_log_probability.neg());
    }
    return -label_log_probability.sum(at::kDouble).item<double>();
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

  Tensor hidden_, weight_, labels_, terms_;
  at::ScalarType narrow_;
  LossRequest request_;
};

// Memory of the general form: a quarter of what all logits and their gradient would take, in the type of the products, but no less than
// this, so that small losses come in one block.
constexpr int64_t least_block_bytes = int64_t{256} << 20;

// Rows of a block of logits, all blocks alike: as few as fit. At its peak a block has the products, and twice the logits, in the wider type.
inline int64_t rows_of_block(int64_t rows, int64_t vocabulary, at::ScalarType narrow, at::ScalarType wide) {
  const int64_t narrow_bytes = static_cast<int64_t>(c10::elementSize(narrow)), wide_bytes = static_cast<int64_t>(c10::elementSize(wide));
  const int64_t budget = std::max(least_block_bytes, rows * vocabulary * narrow_bytes / 2);
  const int64_t most = std::max<int64_t>(1, budget / (vocabulary * ((narrow == wide ? 0 : narrow_bytes) + 2 * wide_bytes)));
  return rows == 0 ? 1 : at::divup(rows, at::divup(rows, most));
}

inline LossResult general_loss(const Tensor &hidden, const Tensor &weight, const Tensor &labels, at::ScalarType narrow, const LossRequest &request) {
  const auto wide = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor inputs = hidden.to(narrow);
  const Tensor matrix = weight.to(narrow);
  LossResult result;
  result.loss = at::zeros({}, hidden.options().dtype(wide));
  if (request.hidden) {
    result.grad_hidden = at::empty_like(hidden);
  }
  const Tensor terms = place_for_terms(request, hidden, wide);
  Tensor grad_weight = request.weight ? at::zeros_like(weight, weight.options().dtype(wide)) : Tensor();
  const int64_t block_rows = rows_of_block(inputs.size(0), matrix.size(0), narrow, wide);
  for (int64_t begin = 0; begin < inputs.size(0); begin += block_rows) {
    const int64_t rows = std::min(block_rows, inputs.size(0) - begin);
    const Tensor chunk = inputs.narrow(0, begin, rows);
    const Tensor label = labels.narrow(0, begin, rows).unsqueeze(1);
    // Passes over [rows, V] are what this costs beside the products: widening, log-softmax, and one that forms the slope in the products' type.
    Tensor log_probabilities = at::_log_softmax(at::mm(chunk, matrix.t()).to(wide), 1, false);
    const Tensor of_label = log_probabilities.gather(1, label);
    const Tensor part = of_label.squeeze(1).neg();
    result.loss.add_(part.sum());
    if (terms.defined()) {
      terms.narrow(0, begin, rows).copy_(part);
    }
    if (!request.hidden && !request.weight) {
      continue;
    }
    Tensor slope = at::empty(log_probabilities.sizes(), inputs.options());
    at::exp_out(slope, log_probabilities);
    log_probabilities.reset();
    // softmax − 1, exact also where the softmax is nearly 1.
    slope.scatter_(1, label, at::expm1(of_label).to(narrow));
    if (request.hidden) {
      result.grad_hidden.narrow(0, begin, rows).copy_(at::mm(slope, matrix).to(wide).mul_(request.scale));
    }
    if (request.weight) {
      grad_weight.add_(at::mm(slope.t(), chunk), request.scale);
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
  static Tensor forward(torch::autograd::AutogradContext *ctx, const Tensor &hidden, const Tensor &weight, const Tensor &labels, const LossRequest &request) {
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

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx, torch::autograd::variable_list grad_outputs) {
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

// `terms`, unless null, becomes every row's cross-entropy, neither scaled nor part of the graph.
inline Tensor linear_cross_entropy(const Tensor &hidden, const Tensor &weight, const Tensor &labels, double scale, Tensor *terms) {
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
                                   LossRequest{scale, gradients && hidden.requires_grad(), gradients && weight.requires_grad(), terms});
}

} // namespace lcl
