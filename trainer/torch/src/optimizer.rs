//! `AdamW` with moments we own, so that checkpoints and other members can have them.
//!
//! Comes in: parameters in a fixed order, each with whether it decays; their gradients. Goes out: updated parameters.
//! It decides nothing about the learning rate, about clipping, or about skipping a step: the caller reads
//! [`AdamW::gradient_norm`] and says what to do.

use tch::{Tensor, no_grad};

use crate::shim::{ShimError, optimizer as kernels};

/// The rule's constants (Loshchilov and Hutter, arXiv 1711.05101, as in `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of the parameters that decay.
    pub weight_decay: f64,
}

/// A parameter with its moments.
#[derive(Debug)]
struct Slot {
    parameter: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    decays: bool,
}

/// The optimizer.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    slots: Vec<Slot>,
    completed_updates: u64,
}

impl AdamW {
    /// Moments start at zero. `parameters`: leaf tensors that require gradients, each with whether weight decay applies to it.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a Tensor, bool)>, options: AdamWOptions) -> Self {
        let slots = parameters
            .into_iter()
            .map(|(parameter, decays)| {
                let (first_moment, second_moment) = no_grad(|| (parameter.zeros_like(), parameter.zeros_like()));
                Slot { parameter: parameter.shallow_clone(), first_moment, second_moment, decays }
            })
            .collect();
        Self { options, slots, completed_updates: 0 }
    }

    /// L2 norm over all gradients, in the parameters' type; NaN or infinite when a gradient is. Waits for the device.
    pub fn gradient_norm(&self) -> Result<f64, ShimError> {
        kernels::gradient_norm(&self.parameters())
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale_gradients(&mut self, factor: f64) -> Result<(), ShimError> {
        kernels::scale_gradients(&self.parameters(), factor)
    }

    /// One update. Gradients are multiplied by `gradient_scale` on the way (clipping costs no pass of its own).
    /// Parameters without a gradient, and their moments, stay as they are.
    pub fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<(), ShimError> {
        for decays in [true, false] {
            let slots: Vec<&Slot> = self.slots.iter().filter(|slot| slot.decays == decays).collect();
            let pick = |field: fn(&Slot) -> &Tensor| slots.iter().map(|slot| field(slot)).collect::<Vec<_>>();
            kernels::adamw_step(&kernels::Update {
                parameters: &pick(|slot| &slot.parameter),
                first_moments: &pick(|slot| &slot.first_moment),
                second_moments: &pick(|slot| &slot.second_moment),
                step: self.completed_updates as i64 + 1,
                learning_rate,
                betas: self.options.betas,
                weight_decay: if decays { self.options.weight_decay } else { 0.0 },
                epsilon: self.options.epsilon,
                gradient_scale,
            })?;
        }
        self.completed_updates += 1;
        Ok(())
    }

    /// Drops every gradient: the next backward pass writes it instead of adding to it.
    pub fn zero_gradients(&mut self) -> Result<(), ShimError> {
        kernels::zero_gradients(&self.parameters(), false)
    }

    /// Updates applied so far.
    #[must_use]
    pub fn completed_updates(&self) -> u64 {
        self.completed_updates
    }

    /// For a restored state: updates applied so far. The bias correction depends on it.
    pub fn set_completed_updates(&mut self, updates: u64) {
        self.completed_updates = updates;
    }

    /// First and second moment of every parameter, in the order of the parameters. Writing into them restores a state.
    pub fn moments(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.slots.iter().map(|slot| (&slot.first_moment, &slot.second_moment))
    }

    fn parameters(&self) -> Vec<&Tensor> {
        self.slots.iter().map(|slot| &slot.parameter).collect()
    }
}
