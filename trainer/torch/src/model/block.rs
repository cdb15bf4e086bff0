//! A pre-norm transformer block, for both towers.

use tch::{Device, Kind, TchError, Tensor};

use super::{
    drop_path::{Kept, KeptImages},
    layers::{Linear, Norm, add_branch, gather_rows},
};
use crate::shim::{AutocastGuard, checkpoint};

/// How the rows of a block's input `[T, W]`, sequences one after the other, belong together.
#[derive(Debug)]
pub(crate) enum Arrangement {
    /// Sequences of equal length; every token sees every other of its sequence.
    Full {
        /// Sequences.
        rows: i64,
        /// Tokens of each.
        length: i64,
    },
    /// Sequences of different lengths; a token sees itself and those before it.
    Causal(Packing),
}

/// Index lists that turn packed rows into a padded matrix and back.
#[derive(Debug)]
pub(crate) struct Packing {
    pub(crate) rows: i64,
    pub(crate) length: i64,
    /// (unpack `[rows · length]`, pack `[T]`); `None` when all rows are equally long.
    pub(crate) indices: Option<(Tensor, Tensor)>,
}

impl Arrangement {
    fn share(&self) -> Self {
        match self {
            Self::Full { rows, length } => Self::Full { rows: *rows, length: *length },
            Self::Causal(packing) => Self::Causal(Packing {
                indices: packing.indices.as_ref().map(|(unpack, pack)| (unpack.shallow_clone(), pack.shallow_clone())),
                ..*packing
            }),
        }
    }
}

/// One block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) heads: i64,
    pub(crate) gelu: &'static str,
    pub(crate) attention_norm: Norm,
    pub(crate) attention_in: Linear,
    pub(crate) attention_out: Linear,
    pub(crate) attention_scale: Option<Tensor>,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp_in: Linear,
    pub(crate) mlp_out: Linear,
    pub(crate) mlp_scale: Option<Tensor>,
}

/// What one call of a block depends on besides its input.
#[derive(Debug)]
pub(crate) struct BlockCall<'a> {
    pub(crate) arrangement: &'a Arrangement,
    /// Of sequences of equal length: which of them keep the two branches; all without it.
    pub(crate) drop_path: [Option<&'a Kept>; 2],
    /// Packed rows whose result is wanted; the others only serve as keys and values.
    pub(crate) keep: Option<&'a Tensor>,
}

impl Block {
    /// `[T, W]` → `[T, W]`, or `[K, W]` when only K rows are kept.
    pub(crate) fn forward(&self, input: &Tensor, call: &BlockCall<'_>) -> Result<Tensor, TchError> {
        let [attention_kept, mlp_kept] = call.drop_path;
        let stream = match call.keep {
            None => {
                let branch = |rows: &Tensor, arrangement: &Arrangement| self.attention_out.forward(&self.context(rows, arrangement)?);
                let residual = Residual { scale: self.attention_scale.as_ref(), kept: attention_kept };
                residual.add(input, call.arrangement, branch)?
            }
            Some(index) => {
                let context = gather_rows(&self.context(input, call.arrangement)?, index)?;
                let branch = self.attention_out.forward(&context)?;
                add_branch(&gather_rows(input, index)?, branch, self.attention_scale.as_ref())?
            }
        };
        let branch =
            |rows: &Tensor, _: &Arrangement| self.mlp_out.forward(&self.mlp_in.forward(&self.mlp_norm.forward(rows)?)?.f_gelu(self.gelu)?);
        Residual { scale: self.mlp_scale.as_ref(), kept: mlp_kept }.add(&stream, call.arrangement, branch)
    }

    /// What attention makes of the stream's rows, before its last linear layer.
    fn context(&self, rows: &Tensor, arrangement: &Arrangement) -> Result<Tensor, TchError> {
        self.attend(&self.attention_in.forward(&self.attention_norm.forward(rows)?)?, arrangement)
    }

    /// As [`Block::forward`], but activations inside the block are computed again in the backward pass instead of being kept.
    pub(crate) fn forward_checkpointed(&self, input: &Tensor, call: &BlockCall<'_>) -> Result<Tensor, TchError> {
        let block = self.share();
        let arrangement = call.arrangement.share();
        let drop_path = call.drop_path.map(|kept| kept.map(Kept::share));
        let keep = call.keep.map(Tensor::shallow_clone);
        let output = checkpoint(&[input], move |inputs| {
            let [input] = inputs else { return Err(TchError::Shape("a block has one input".to_owned())) };
            let drop_path = drop_path.each_ref().map(Option::as_ref);
            block.forward(input, &BlockCall { arrangement: &arrangement, drop_path, keep: keep.as_ref() })
        })?;
        Ok(output)
    }

    /// Queries, keys and values `[T, 3W]` → attention's result `[T, W]`.
    fn attend(&self, joint: &Tensor, arrangement: &Arrangement) -> Result<Tensor, TchError> {
        let width = joint.size().last().copied().unwrap_or_default() / 3;
        let split = |joint: &Tensor, rows: i64, length: i64| joint.f_view([rows, length, 3, self.heads, width / self.heads]);
        match arrangement {
            Arrangement::Full { rows, length } => attention(&split(joint, *rows, *length)?, false)?.f_reshape([rows * length, width]),
            Arrangement::Causal(Packing { rows, length, indices: None }) => {
                attention(&split(joint, *rows, *length)?, true)?.f_reshape([rows * length, width])
            }
            Arrangement::Causal(Packing { rows, length, indices: Some((unpack, pack)) }) => {
                let padded = split(&gather_rows(joint, unpack)?, *rows, *length)?;
                gather_rows(&attention(&padded, true)?.f_reshape([rows * length, width])?, pack)
            }
        }
    }

    fn share(&self) -> Self {
        Self {
            heads: self.heads,
            gelu: self.gelu,
            attention_norm: self.attention_norm.share(),
            attention_in: self.attention_in.share(),
            attention_out: self.attention_out.share(),
            attention_scale: self.attention_scale.as_ref().map(Tensor::shallow_clone),
            mlp_norm: self.mlp_norm.share(),
            mlp_in: self.mlp_in.share(),
            mlp_out: self.mlp_out.share(),
            mlp_scale: self.mlp_scale.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// `[n, L, 3, heads, d]` → `[n, L, heads, d]`. Padding lies on the right, so the causal mask hides it from every real token.
fn attention(joint: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    let joint = widened(joint)?;
    let [query, key, value] = <[Tensor; 3]>::try_from(joint.f_unbind(2)?)
        .map_err(|parts| TchError::Shape(format!("{} parts instead of query, key and value", parts.len())))?;
    let heads_first = |part: &Tensor| part.f_transpose(1, 2);
    scaled_dot_product(&heads_first(&query)?, &heads_first(&key)?, &heads_first(&value)?, causal)?.f_transpose(1, 2)
}

/// Softmax(query · keyᵀ · d^-0.5) · value by libtorch's fused kernels; all `[n, heads, L, d]`. On a processor in float32 also under autocast.
pub(crate) fn scaled_dot_product(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    let _guard = if query.device() == Device::Cpu { Some(AutocastGuard::disabled(Device::Cpu)?) } else { None };
    let [query, key, value] = [widened(query)?, widened(key)?, widened(value)?];
    Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, causal, None, false)
}

/// What attention is computed from on a processor: libtorch's fused kernels take 1.2 to 9 times as long for bfloat16 as for float32 there, by
/// the many small products that they are made of (docs/benchmarks.md).
fn widened(tensor: &Tensor) -> Result<Tensor, TchError> {
    let is_narrow = tensor.device() == Device::Cpu && tensor.kind() == Kind::BFloat16;
    if is_narrow { tensor.f_to_kind(Kind::Float) } else { Ok(tensor.shallow_clone()) }
}

/// How a branch is added to the stream.
struct Residual<'a> {
    /// Layer-scale, `[W]`.
    scale: Option<&'a Tensor>,
    /// Which sequences have the branch; all without it.
    kept: Option<&'a Kept>,
}

impl Residual<'_> {
    /// The stream `[T, W]` with what `branch` makes of it. Only sequences that keep the branch are given to it, arranged as they are then.
    fn add(
        &self,
        stream: &Tensor,
        arrangement: &Arrangement,
        branch: impl FnOnce(&Tensor, &Arrangement) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        let Some(Kept { images, factor }) = self.kept else { return add_branch(stream, branch(stream, arrangement)?, self.scale) };
        let scale = self.scale.map(|scale| scale.f_mul_scalar(*factor)).transpose()?;
        let multiplied = |branch: Tensor| match &scale {
            Some(_) => Ok(branch),
            None => branch.f_to_kind(stream.kind())?.f_mul_scalar(*factor),
        };
        match (images, arrangement) {
            (KeptImages::All, _) => add_branch(stream, multiplied(branch(stream, arrangement)?)?, scale.as_ref()),
            (KeptImages::Some { count: 0, .. }, _) => Ok(stream.shallow_clone()),
            (KeptImages::Some { index, count }, Arrangement::Full { rows, length }) => {
                let sequences = stream.f_view([*rows, -1])?;
                let kept = sequences.f_index_select(0, index)?.f_view([count * length, -1])?;
                let branch = multiplied(branch(&kept, &Arrangement::Full { rows: *count, length: *length })?)?;
                let branch = match &scale {
                    Some(scale) => branch.f_mul(scale)?,
                    None => branch,
                };
                let branch = branch.f_to_kind(stream.kind())?.f_view([*count, -1])?;
                sequences.f_index_add(0, index, &branch)?.f_view([rows * length, -1])
            }
            (KeptImages::Some { .. }, Arrangement::Causal(_)) => {
                Err(TchError::Shape("drop-path needs sequences of equal length".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::model::drop_path::{DropPath, DropPathKey};

    /// Four sequences of three tokens, two wide.
    fn stream() -> Tensor {
        (Tensor::arange(24, (Kind::Float, Device::Cpu)).view([12, 2]) * 0.37).sin().detach().set_requires_grad(true)
    }

    /// The stream with the branch tanh(2 x), by the kept branches of drop-path's last block, and so many rows that were computed.
    fn add(stream: &Tensor, scale: Option<&Tensor>, kept: Option<&Kept>) -> Result<(Tensor, i64), TchError> {
        let computed = Cell::new(0);
        let branch = |rows: &Tensor, arrangement: &Arrangement| {
            let Arrangement::Full { rows: sequences, length } = arrangement else { return Err(TchError::Shape("not full".to_owned())) };
            assert_eq!(rows.size(), [sequences * length, 2]);
            computed.set(computed.get() + rows.size()[0]);
            rows.f_mul_scalar(2.0)?.f_tanh()
        };
        let output = Residual { scale, kept }.add(stream, &Arrangement::Full { rows: 4, length: 3 }, branch)?;
        Ok((output, computed.get()))
    }

    /// The same by the definition: a factor for every row.
    fn by_definition(stream: &Tensor, scale: Option<&Tensor>, factors: [f64; 4]) -> Tensor {
        let factors = Tensor::from_slice(&factors).to_kind(Kind::Float).view([4, 1]).expand([4, 3], false).reshape([12, 1]);
        let branch = (stream * 2.0).tanh() * factors;
        stream + scale.map_or_else(|| branch.shallow_clone(), |scale| &branch * scale)
    }

    #[test]
    fn a_branch_is_computed_for_the_images_that_keep_it_and_no_others() -> Result<(), TchError> {
        let gamma = Tensor::from_slice(&[0.5_f32, -1.5]).set_requires_grad(true);
        let weights = (Tensor::arange(24, (Kind::Float, Device::Cpu)).view([12, 2]) * 0.11).cos();
        let mut counts = std::collections::BTreeSet::new();
        for step in 0..40 {
            let drop_path = DropPath::draw(DropPathKey { seed: 3, step }, 0.5, 2, &[(0, 0), (1, 0), (2, 0), (3, 0)]);
            let placed = drop_path.place(Device::Cpu)?;
            assert!(placed.of_block(0).iter().all(Option::is_none), "the first block keeps everything");
            for branch in 0..2 {
                let factors = drop_path.factors_of(1, branch);
                let kept = factors.iter().filter(|factor| **factor > 0.0).count() as i64;
                counts.insert(kept);
                for scale in [None, Some(&gamma)] {
                    let outcome = |output: &Tensor, stream: &Tensor| -> Result<Vec<Tensor>, TchError> {
                        let leaves: Vec<&Tensor> = std::iter::once(stream).chain(scale.filter(|_| kept > 0)).collect();
                        let mut all = Tensor::f_run_backward(&[&(output * &weights).sum(Kind::Float)], &leaves, false, false)?;
                        all.push(output.detach());
                        Ok(all)
                    };
                    let (one, other) = (stream(), stream());
                    let (output, computed) = add(&one, scale, placed.of_block(1)[branch])?;
                    assert_eq!(computed, 3 * kept, "step {step}");
                    let found = outcome(&output, &one)?;
                    let expected = outcome(&by_definition(&other, scale, factors.map(f64::from)), &other)?;
                    for (found, expected) in found.iter().zip(&expected) {
                        let apart = (found - expected).abs().max().double_value(&[]);
                        assert!(apart < 1e-5, "step {step}, branch {branch}: {apart}");
                    }
                }
            }
        }
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4], "every number of images was tried");
        Ok(())
    }

    /// Its products are exact there, and it takes less time (docs/benchmarks.md).
    #[test]
    fn under_autocast_a_processor_computes_attention_in_float32() -> Result<(), TchError> {
        let joint = (Tensor::arange(2 * 5 * 3 * 8, (Kind::Float, Device::Cpu)) * 0.37).sin().view([2, 5, 3, 2, 4]).to_kind(Kind::BFloat16);
        let expected = attention(&joint.to_kind(Kind::Float), true)?;
        let guard = AutocastGuard::bfloat16(Device::Cpu)?;
        let found = attention(&joint, true)?;
        drop(guard);
        assert_eq!(found.kind(), Kind::Float);
        assert_eq!(found, expected, "the same bits");
        Ok(())
    }
}
