//! The two layers everything is built of, and the gather between packed and padded rows.

use tch::{Device, TchError, Tensor};

use crate::shim::linear::linear;

/// Epsilon of every layer norm of the reference (that is `PyTorch`'s default).
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Departures from the definition that tests put in to see that others notice. The default is the definition.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelFaults {
    /// GELU by the tanh approximation.
    pub tanh_gelu: bool,
    /// Another epsilon of the layer norms.
    pub layer_norm_epsilon: Option<f64>,
}

/// Layer norm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl Norm {
    pub(crate) fn new(weight: Tensor, bias: Tensor, faults: ModelFaults) -> Self {
        Self { weight, bias, epsilon: faults.layer_norm_epsilon.unwrap_or(LAYER_NORM_EPSILON) }
    }

    /// `[T, W]` → `[T, W]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), epsilon: self.epsilon }
    }
}

/// Linear layer; the weight is `[out, in]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// `[T, in]` → `[T, out]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        Ok(linear(input, &self.weight, self.bias.as_ref())?)
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }
}

/// Rows of a matrix `[R, W]` at `index` `[K]` → `[K, W]`.
///
/// On the CPU through `embedding`, whose backward pass runs in parallel where that of `index_select` does not; on a GPU it is the other
/// way round (`embedding` sorts its indices first).
pub(crate) fn gather_rows(matrix: &Tensor, index: &Tensor) -> Result<Tensor, TchError> {
    if matrix.device() == Device::Cpu { Tensor::f_embedding(matrix, index, -1, false, false) } else { matrix.f_index_select(0, index) }
}

/// Adds a residual branch `[T, W]`, times layer-scale `[W]` where there is one, to the stream: in the branch's memory where the types allow it, and
/// with layer-scale in one pass.
///
/// Both are matrices on purpose: a linear layer's result on more dimensions is a view, and changing a view in place costs autograd a copy.
pub(crate) fn add_branch(stream: &Tensor, mut branch: Tensor, scale: Option<&Tensor>) -> Result<Tensor, TchError> {
    match scale {
        Some(scale) => stream.f_addcmul(&branch, scale),
        None if branch.kind() == stream.kind() => branch.f_add_(stream),
        None => stream.f_add(&branch),
    }
}
