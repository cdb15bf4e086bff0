//! Parameters by name, for putting a model together.

use std::collections::HashMap;

use tch::Tensor;

use super::{
    ModelError,
    block::Block,
    layers::{Linear, ModelFaults, Norm},
};

/// Parameters of a model while it is put together.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) by_name: HashMap<String, Tensor>,
    pub(crate) faults: ModelFaults,
}

impl Weights {
    pub(crate) fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        self.by_name.get(name).map(Tensor::shallow_clone).ok_or_else(|| ModelError::MissingParameter { name: name.to_owned() })
    }

    pub(crate) fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        Ok(Norm::new(self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?, self.faults))
    }

    fn linear(&self, name: &str) -> Result<Linear, ModelError> {
        Ok(Linear { weight: self.get(&format!("{name}.weight"))?, bias: Some(self.get(&format!("{name}.bias"))?) })
    }

    pub(crate) fn blocks(&self, tower: &str, layers: i64, heads: i64) -> Result<Vec<Block>, ModelError> {
        (0..layers).map(|layer| self.block(&format!("{tower}.transformer.resblocks.{layer}"), heads)).collect()
    }

    fn block(&self, name: &str, heads: i64) -> Result<Block, ModelError> {
        let scale = |part: &str| self.by_name.get(&format!("{name}.{part}.gamma")).map(Tensor::shallow_clone);
        let joint_weight = self.get(&format!("{name}.attn.in_proj_weight"))?;
        let joint_bias = self.get(&format!("{name}.attn.in_proj_bias"))?;
        Ok(Block {
            heads,
            gelu: if self.faults.tanh_gelu { "tanh" } else { "none" },
            attention_norm: self.norm(&format!("{name}.ln_1"))?,
            attention_in: Linear { weight: joint_weight, bias: Some(joint_bias) },
            attention_out: self.linear(&format!("{name}.attn.out_proj"))?,
            attention_scale: scale("ls_1"),
            mlp_norm: self.norm(&format!("{name}.ln_2"))?,
            mlp_in: self.linear(&format!("{name}.mlp.c_fc"))?,
            mlp_out: self.linear(&format!("{name}.mlp.c_proj"))?,
            mlp_scale: scale("ls_2"),
        })
    }
}
