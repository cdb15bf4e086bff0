//! Comparisons that collect what differs.

use anyhow::{Context, Result, bail, ensure};
use lcl_torch::{Tensor, to_host};

use crate::reference::{Recorded, Tensors};

/// Tolerances of the recordings' README.
pub(crate) const FORWARD: f64 = 5e-6;
pub(crate) const LOSS: f64 = 1e-6;
pub(crate) const GRADIENT: f64 = 5e-6;
pub(crate) const PARAMETER: f64 = 2e-5;
/// Bound of gradients that are 0 in exact arithmetic, at contrastive weight 0.1 (they grow with it).
pub(crate) const NOISE: f64 = 1e-8;
const NOISE_COEFFICIENT: f64 = 0.1;

/// Gradients that are 0 in exact arithmetic: a bias that is the same for all keys does not change a softmax.
const NOISE_TENSORS: [&str; 2] = ["pool_project.pooler.norm1_k.bias", "pool_project.pooler.cross_attn.k_bias"];

/// What did not agree.
#[derive(Default)]
pub(crate) struct Differences(Vec<String>);

impl Differences {
    /// Notes a difference that is not within the tolerance; NaN never is.
    pub(crate) fn within(&mut self, what: &str, found: f64, tolerance: f64) {
        if found.is_nan() || found > tolerance {
            self.0.push(format!("{what}: off by {found:.3e}, allowed is {tolerance:.0e}"));
        } else {
            println!("{what}: {found:.2e} (allowed {tolerance:.0e})");
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        self.0.push(what);
    }

    pub(crate) fn number(&mut self, what: &str, found: f64, expected: f64, relative: f64) {
        self.within(what, (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE), relative);
    }

    pub(crate) fn tensor(&mut self, what: &str, found: &Tensor, expected: Option<&Recorded>, absolute: f64) -> Result<()> {
        let expected = expected.with_context(|| format!("{what} is not recorded"))?;
        if !found.size().iter().map(|size| *size as usize).eq(expected.shape.iter().copied()) {
            self.note(format!("{what}: shape {:?}, recorded {:?}", found.size(), expected.shape));
            return Ok(());
        }
        let largest = to_host(found)?.iter().zip(expected.values()).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        self.within(what, largest, absolute);
        Ok(())
    }

    /// Relative L2 distance over all parameters, and the absolute size of those that are only noise.
    pub(crate) fn gradients(&mut self, what: &str, found: &[(&str, Tensor)], expected: &Tensors, coefficient: f64) -> Result<()> {
        ensure!(found.len() == expected.len(), "{what}: {} gradients, recorded {}", found.len(), expected.len());
        let (mut distance, mut norm) = (0.0, 0.0);
        for (name, gradient) in found {
            let values = to_host(gradient)?;
            let recorded = expected.get(*name).with_context(|| format!("{what}: `{name}` is not recorded"))?.values();
            ensure!(values.len() == recorded.len(), "{what}: `{name}` has {} values, recorded {}", values.len(), recorded.len());
            if NOISE_TENSORS.contains(name) {
                let largest = values.iter().map(|value| f64::from(value.abs())).fold(0.0, f64::max);
                self.within(&format!("{what}, noise of {name}"), largest, NOISE * (coefficient / NOISE_COEFFICIENT).max(1.0));
            }
            for (a, b) in values.iter().zip(&recorded) {
                distance += f64::from(a - b).powi(2);
                norm += f64::from(*b).powi(2);
            }
        }
        self.within(what, (distance / norm).sqrt(), GRADIENT);
        Ok(())
    }

    /// Largest absolute distance of any parameter whose gradient is not noise.
    pub(crate) fn parameters(&mut self, what: &str, found: &[(String, Tensor)], expected: &Tensors) -> Result<()> {
        let mut worst = (0.0, String::new());
        let mut compared = 0;
        for (name, tensor) in found {
            let Some(name) = name.strip_prefix("model.") else { continue };
            compared += 1;
            let values = to_host(tensor)?;
            let recorded = expected.get(name).with_context(|| format!("{what}: `{name}` is not recorded"))?.values();
            for (index, (a, b)) in values.iter().zip(&recorded).enumerate() {
                let distance = f64::from((a - b).abs());
                if !is_noise(name, index, values.len()) && (distance > worst.0 || distance.is_nan()) {
                    worst = (distance, name.to_owned());
                }
            }
        }
        ensure!(compared == expected.len(), "{what}: {compared} parameters, recorded {}", expected.len());
        self.within(&format!("{what}, worst in {}", worst.1), worst.0, PARAMETER);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!("{} differences:\n  {}", self.0.len(), self.0.join("\n  "))
    }
}

/// The key's third of a joint bias is noise for the same reason as the two tensors above.
fn is_noise(name: &str, index: usize, length: usize) -> bool {
    NOISE_TENSORS.contains(&name) || (name.ends_with("in_proj_bias") && (length / 3..2 * length / 3).contains(&index))
}
