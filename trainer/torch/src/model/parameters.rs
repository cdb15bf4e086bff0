//! Names, shapes, initial distributions and weight decay of every parameter, computed from sizes alone.
//!
//! Comes in: a [`ModelConfig`]. Goes out: [`ParameterSpec`]s in the order of the reference implementation's `state_dict`.
//! No tensor is made here, so counting the parameters of any model costs nothing.

use lcl_trainer_config::{ModelConfig, Objective};

/// ln(1 / 0.07), the reference's initial temperature (that of CLIP).
const INITIAL_LOGIT_SCALE: f64 = 2.659_260_036_932_778;
/// Standard deviations of the reference's text tower (those of CLIP).
const TOKEN_EMBEDDING_DEVIATION: f64 = 0.02;
const TEXT_POSITION_DEVIATION: f64 = 0.01;
/// Channels of an input image.
const IMAGE_CHANNELS: i64 = 3;
/// Width of a block's MLP in units of the residual stream's width.
const MLP_RATIO: i64 = 4;

/// How a parameter is filled before the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Every element has this value.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

/// What is known of a parameter without its values.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// The reference's name.
    pub name: String,
    /// Sizes of its dimensions; empty for a scalar.
    pub shape: Vec<i64>,
    /// Its distribution before the first step.
    pub initial: Initial,
}

impl ParameterSpec {
    /// Whether weight decay applies: two or more dimensions and not the weight or bias of a norm, a bias, or the temperature.
    ///
    /// The name test is the reference's own (it looks for the letters anywhere in the name, and would also match `bn`).
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2 && !["bn", "ln", "bias", "logit_scale"].iter().any(|part| self.name.contains(part))
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|size| size.unsigned_abs()).product()
    }
}

/// Number of trainable values of a model.
#[must_use]
pub fn parameter_count(config: &ModelConfig) -> u64 {
    parameter_specs(config).iter().map(ParameterSpec::elements).sum()
}

/// Every parameter in the order of the reference's `state_dict`.
///
/// With [`Objective::Clip`] the language model's head (`lm_head.*`) is left out: no loss would ever reach it. All else is the same.
/// With layer-scale every vision block has `ls_1.gamma` and `ls_2.gamma`, named and placed as `open_clip` does.
#[must_use]
pub fn parameter_specs(config: &ModelConfig) -> Vec<ParameterSpec> {
    let shape = &config.shape;
    let (vision, text) = (&shape.vision, &shape.text);
    let mut specs = Specs(Vec::new());
    specs.push("logit_scale", &[], Initial::Constant(INITIAL_LOGIT_SCALE));

    let vision_deviation = power(vision.width, -0.5);
    let patch = [vision.width, IMAGE_CHANNELS, vision.patch_size, vision.patch_size];
    specs.push("visual.class_embedding", &[vision.width], Initial::Normal(vision_deviation));
    specs.push("visual.positional_embedding", &[vision.tokens() + 1, vision.width], Initial::Normal(vision_deviation));
    specs.push("visual.conv1.weight", &patch, default_uniform(IMAGE_CHANNELS * vision.patch_size * vision.patch_size));
    specs.norm("visual.ln_pre", vision.width);
    let block = BlockInitial::pytorch_default(vision.width);
    for layer in 0..vision.layers {
        specs.block(&format!("visual.transformer.resblocks.{layer}"), vision.width, &block, config.layer_scale);
    }
    specs.norm("visual.ln_post", vision.width);

    specs.push("text.positional_embedding", &[text.context_length, text.width], Initial::Normal(TEXT_POSITION_DEVIATION));
    specs.push("text.text_projection", &[text.width, shape.embed_dim], Initial::Normal(power(text.width, -0.5)));
    specs.push("text.token_embedding.weight", &[text.vocab_size, text.width], Initial::Normal(TOKEN_EMBEDDING_DEVIATION));
    let block = BlockInitial::text_tower(text.width, text.layers);
    for layer in 0..text.layers {
        specs.block(&format!("text.transformer.resblocks.{layer}"), text.width, &block, None);
    }
    specs.norm("text.ln_final", text.width);

    specs.push("pool_project.query_token", &[1, 1, vision.width], Initial::Normal(1.0));
    for norm in ["norm1_q", "norm1_k", "norm1_v"] {
        specs.norm(&format!("pool_project.pooler.{norm}"), vision.width);
    }
    for bias in ["q_bias", "k_bias", "v_bias"] {
        specs.push(&format!("pool_project.pooler.cross_attn.{bias}"), &[shape.embed_dim], Initial::Constant(0.0));
    }
    for linear in ["q", "k", "v"] {
        let name = format!("pool_project.pooler.cross_attn.{linear}.weight");
        specs.push(&name, &[shape.embed_dim, vision.width], default_uniform(vision.width));
    }
    let square = [shape.embed_dim, shape.embed_dim];
    specs.push("pool_project.pooler.cross_attn.proj.weight", &square, default_uniform(shape.embed_dim));

    if matches!(config.objective, Objective::Lcl { .. }) {
        specs.norm("lm_head.0", text.width);
        specs.push("lm_head.1.weight", &[text.vocab_size, text.width], default_uniform(text.width));
    }
    specs.0
}

/// Initial distributions of a block's four matrices.
struct BlockInitial {
    attention_in: Initial,
    attention_out: Initial,
    mlp_in: Initial,
    mlp_out: Initial,
}

impl BlockInitial {
    /// `nn.MultiheadAttention` fills its joint input projection by Xavier's rule and the rest as `nn.Linear` does.
    fn pytorch_default(width: i64) -> Self {
        Self {
            attention_in: Initial::Uniform((6.0 / (4 * width) as f64).sqrt()),
            attention_out: default_uniform(width),
            mlp_in: default_uniform(width),
            mlp_out: default_uniform(MLP_RATIO * width),
        }
    }

    /// The rule of CLIP's text tower.
    fn text_tower(width: i64, layers: i64) -> Self {
        let out = power(width, -0.5) * power(2 * layers, -0.5);
        Self {
            attention_in: Initial::Normal(power(width, -0.5)),
            attention_out: Initial::Normal(out),
            mlp_in: Initial::Normal(power(2 * width, -0.5)),
            mlp_out: Initial::Normal(out),
        }
    }
}

struct Specs(Vec<ParameterSpec>);

impl Specs {
    fn push(&mut self, name: &str, shape: &[i64], initial: Initial) {
        self.0.push(ParameterSpec { name: name.to_owned(), shape: shape.to_vec(), initial });
    }

    fn norm(&mut self, name: &str, width: i64) {
        self.push(&format!("{name}.weight"), &[width], Initial::Constant(1.0));
        self.push(&format!("{name}.bias"), &[width], Initial::Constant(0.0));
    }

    fn block(&mut self, name: &str, width: i64, initial: &BlockInitial, layer_scale: Option<f64>) {
        let hidden = MLP_RATIO * width;
        self.norm(&format!("{name}.ln_1"), width);
        self.push(&format!("{name}.attn.in_proj_weight"), &[3 * width, width], initial.attention_in);
        self.push(&format!("{name}.attn.in_proj_bias"), &[3 * width], Initial::Constant(0.0));
        self.push(&format!("{name}.attn.out_proj.weight"), &[width, width], initial.attention_out);
        self.push(&format!("{name}.attn.out_proj.bias"), &[width], Initial::Constant(0.0));
        self.scale(&format!("{name}.ls_1"), width, layer_scale);
        self.norm(&format!("{name}.ln_2"), width);
        self.push(&format!("{name}.mlp.c_fc.weight"), &[hidden, width], initial.mlp_in);
        self.push(&format!("{name}.mlp.c_fc.bias"), &[hidden], default_uniform(width));
        self.push(&format!("{name}.mlp.c_proj.weight"), &[width, hidden], initial.mlp_out);
        self.push(&format!("{name}.mlp.c_proj.bias"), &[width], default_uniform(hidden));
        self.scale(&format!("{name}.ls_2"), width, layer_scale);
    }

    fn scale(&mut self, name: &str, width: i64, layer_scale: Option<f64>) {
        if let Some(value) = layer_scale {
            self.push(&format!("{name}.gamma"), &[width], Initial::Constant(value));
        }
    }
}

/// `PyTorch`'s default for the weights and biases of `nn.Linear` and `nn.Conv2d`: uniform within fan-in^-0.5.
fn default_uniform(fan_in: i64) -> Initial {
    Initial::Uniform(power(fan_in, -0.5))
}

fn power(base: i64, exponent: f64) -> f64 {
    (base as f64).powf(exponent)
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{Precision, Preset};

    use super::*;

    fn config(preset: Preset, objective: Objective, layer_scale: Option<f64>) -> ModelConfig {
        let precision = Precision::Float32;
        ModelConfig { shape: preset.shape(), objective, drop_path: 0.0, layer_scale, activation_checkpointing: false, precision }
    }

    const LCL: Objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };

    #[test]
    fn presets_have_exactly_the_counts_of_the_reference() {
        // Counted from open_clip's towers, with the pooling and the head added by hand.
        let check = |preset, expected| assert_eq!(parameter_count(&config(preset, LCL, None)), expected, "{preset}");
        check(Preset::VitB16Laion, 249_924_097);
        check(Preset::VitB32Laion, 177_659_905);
        check(Preset::VitB32Mmc4, 178_642_945);
        check(Preset::VitL14Laion, 467_942_145);
        check(Preset::Tiny, 14_428_417);
        check(Preset::TinyMmc4, 14_452_993);
    }

    #[test]
    fn the_clip_objective_leaves_out_the_head_and_nothing_else() {
        let (lcl, clip) =
            (parameter_specs(&config(Preset::Tiny, LCL, None)), parameter_specs(&config(Preset::Tiny, Objective::Clip, None)));
        let without_head: Vec<_> = lcl.into_iter().filter(|spec| !spec.name.starts_with("lm_head")).collect();
        assert_eq!(without_head, clip);
    }

    #[test]
    fn layer_scale_adds_two_vectors_without_decay_to_every_vision_block() {
        let specs = parameter_specs(&config(Preset::Tiny, LCL, Some(1e-5)));
        let scales: Vec<_> = specs.iter().filter(|spec| spec.name.ends_with("gamma")).collect();
        assert_eq!(scales.len(), 2 * 4);
        assert!(scales.iter().all(|spec| spec.name.starts_with("visual.") && !spec.decays() && spec.initial == Initial::Constant(1e-5)));
        let place = |name: &str| specs.iter().position(|spec| spec.name == format!("visual.transformer.resblocks.0.{name}"));
        assert!(place("attn.out_proj.bias") < place("ls_1.gamma") && place("ls_1.gamma") < place("ln_2.weight"));
    }
}
