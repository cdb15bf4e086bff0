//! A pre-norm transformer block, for both towers.

use tch::{TchError, Tensor};

use super::layers::{Linear, Norm, add_branch, gather_rows};
use crate::shim::checkpoint;

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
    /// Factors of the two branches, each `[T, 1]`: 0 where dropped, 1 / keep probability elsewhere.
    pub(crate) drop_path: Option<[Tensor; 2]>,
    /// Packed rows whose result is wanted; the others only serve as keys and values.
    pub(crate) keep: Option<&'a Tensor>,
}

impl Block {
    /// `[T, W]` → `[T, W]`, or `[K, W]` when only K rows are kept.
    pub(crate) fn forward(&self, input: &Tensor, call: &BlockCall<'_>) -> Result<Tensor, TchError> {
        let mut context = self.attend(&self.attention_in.forward(&self.attention_norm.forward(input)?)?, call.arrangement)?;
        let kept;
        let stream = match call.keep {
            None => input,
            Some(index) => {
                context = gather_rows(&context, index)?;
                kept = gather_rows(input, index)?;
                &kept
            }
        };
        let [attention_drop, mlp_drop] = call.drop_path.as_ref().map_or([None, None], |[a, b]| [Some(a), Some(b)]);
        let branch = scaled(self.attention_out.forward(&context)?, self.attention_scale.as_ref(), attention_drop)?;
        let stream = add_branch(stream, branch)?;
        let hidden = self.mlp_in.forward(&self.mlp_norm.forward(&stream)?)?.f_gelu(self.gelu)?;
        let branch = scaled(self.mlp_out.forward(&hidden)?, self.mlp_scale.as_ref(), mlp_drop)?;
        add_branch(&stream, branch)
    }

    /// As [`Block::forward`], but activations inside the block are computed again in the backward pass instead of being kept.
    pub(crate) fn forward_checkpointed(&self, input: &Tensor, call: &BlockCall<'_>) -> Result<Tensor, TchError> {
        let block = self.share();
        let arrangement = call.arrangement.share();
        let drop_path = call.drop_path.as_ref().map(|masks| masks.each_ref().map(Tensor::shallow_clone));
        let keep = call.keep.map(Tensor::shallow_clone);
        let output = checkpoint(&[input], move |inputs| {
            let [input] = inputs else { return Err(TchError::Shape("a block has one input".to_owned())) };
            let drop_path = drop_path.as_ref().map(|masks| masks.each_ref().map(Tensor::shallow_clone));
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
    let [query, key, value] = <[Tensor; 3]>::try_from(joint.f_unbind(2)?)
        .map_err(|parts| TchError::Shape(format!("{} parts instead of query, key and value", parts.len())))?;
    let heads_first = |part: &Tensor| part.f_transpose(1, 2);
    scaled_dot_product(&heads_first(&query)?, &heads_first(&key)?, &heads_first(&value)?, causal)?.f_transpose(1, 2)
}

/// Softmax(query · keyᵀ · d^-0.5) · value by libtorch's fused kernels; all `[n, heads, L, d]`.
pub(crate) fn scaled_dot_product(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    Tensor::f_scaled_dot_product_attention(query, key, value, None::<&Tensor>, 0.0, causal, None, false)
}

fn scaled(branch: Tensor, layer_scale: Option<&Tensor>, drop_path: Option<&Tensor>) -> Result<Tensor, TchError> {
    let branch = match layer_scale {
        Some(gamma) => branch.f_mul(gamma)?,
        None => branch,
    };
    match drop_path {
        Some(factors) => branch.f_mul(factors),
        None => Ok(branch),
    }
}
