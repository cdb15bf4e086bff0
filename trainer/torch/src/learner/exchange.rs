//! What the members of a step exchange, in this order: counts and wishes; contrastive features; gradients; the generation loss.
//!
//! One member alone takes the same path and exchanges nothing. Which exchanges take place depends on the gathered counts only, and so is
//! the same on all members.

use std::time::Duration;

use tch::{TchError, Tensor};

use super::LearnerError;
use crate::{
    collectives::{Group, GroupError},
    loss::Counts,
    model::Parameter,
};

/// A member's place in a step of several members.
#[derive(Debug)]
pub struct MemberStep<'a> {
    /// The members; in use for this step alone.
    pub group: &'a mut Group,
    /// A number that all members learn of in this step, to agree by: a wish to leave, to save, to reconfigure. Its meaning is the caller's.
    pub wish: i64,
    /// Of every single exchange.
    pub timeout: Duration,
}

/// What the members said in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Every member's wish, in rank order; the same on all members. A wish read at one step takes effect after the next one.
    pub wishes: Vec<i64>,
}

/// A member's exchanges of one step.
#[derive(Debug)]
pub(super) enum Exchange<'a> {
    /// All members of the step are computed here.
    Alone,
    /// One member of a group.
    Members {
        /// The place in the group.
        member: MemberStep<'a>,
        /// What the others wish.
        agreement: Agreement,
    },
}

/// Contrastive features of all members of the step.
#[derive(Debug)]
pub(super) struct GlobalFeatures {
    /// `[G, E]`.
    pub(super) images: Tensor,
    /// `[G, E]`.
    pub(super) texts: Tensor,
    /// Where the rows of this process begin.
    pub(super) start: i64,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(member: MemberStep<'a>) -> Self {
        Self::Members { member, agreement: Agreement::default() }
    }

    pub(super) fn agreement(self) -> Agreement {
        match self {
            Self::Alone => Agreement::default(),
            Self::Members { agreement, .. } => agreement,
        }
    }

    /// After an error: leaves the group.
    pub(super) fn close(&mut self) {
        if let Self::Members { member, .. } = self {
            member.group.close();
        }
    }

    /// Counts of all members of the step, given those of the members that are computed here.
    pub(super) fn counts(&mut self, local: &[Counts]) -> Result<Vec<Counts>, GroupError> {
        let Self::Members { member, agreement } = self else { return Ok(local.to_vec()) };
        let own: Counts = local.iter().copied().sum();
        let numbers = [own.predictions as i64, own.contrast as i64, member.wish];
        let mut counts = Vec::new();
        for numbers in member.group.exchange(&numbers, member.timeout)? {
            let [predictions, contrast, wish] = numbers.as_slice() else { continue };
            counts.push(Counts { predictions: predictions.unsigned_abs(), contrast: contrast.unsigned_abs() });
            agreement.wishes.push(*wish);
        }
        Ok(counts)
    }

    /// Features of all members in rank order, given the `[n, E]` of this one.
    pub(super) fn features(&mut self, images: Tensor, texts: Tensor, counts: &[Counts]) -> Result<GlobalFeatures, GroupError> {
        let Self::Members { member, .. } = self else { return Ok(GlobalFeatures { images, texts, start: 0 }) };
        let failed = |source| GroupError::Tensor { operation: "joining features", source };
        let rows: Vec<u64> = counts.iter().map(|counts| counts.contrast).collect();
        // One exchange for both.
        let pairs = Tensor::f_stack(&[&images, &texts], 1).map_err(failed)?;
        let device = images.device();
        let pairs = pairs.f_to_device(tch::Device::Cpu).map_err(failed)?;
        let gathered = member.group.all_gather_rows(&pairs, &rows, member.timeout)?;
        let side = |index| gathered.f_select(1, index)?.f_contiguous()?.f_to_device(device);
        let start = rows.iter().take(member.group.rank()).sum::<u64>() as i64;
        Ok(GlobalFeatures { images: side(0).map_err(failed)?, texts: side(1).map_err(failed)?, start })
    }

    /// Whether this member adds what all of them know, such as the gradient of the temperature, to the sum of gradients.
    pub(super) fn adds_common_terms(&self) -> bool {
        match self {
            Self::Alone => true,
            Self::Members { member, .. } => member.group.rank() == 0,
        }
    }

    /// Before the last backward pass of micro-batches.
    pub(super) fn prepare_sum(&mut self, parameters: &[Parameter]) -> Result<(), GroupError> {
        let Self::Members { member, .. } = self else { return Ok(()) };
        let parameters: Vec<&Tensor> = parameters.iter().map(|parameter| &parameter.tensor).collect();
        member.group.prepare_sum(&parameters, member.timeout)
    }

    /// After it: for every parameter, whether its gradient still has to be completed. The sum over members waits for all of them.
    pub(super) fn incomplete(&mut self, parameters: &[Parameter]) -> Result<Vec<bool>, GroupError> {
        match self {
            Self::Alone => Ok(parameters.iter().map(|parameter| !parameter.tensor.grad().defined()).collect()),
            Self::Members { member, .. } => Ok(member.group.reached()?.into_iter().map(|reached| !reached).collect()),
        }
    }

    /// After the gradients are complete: succeeds if they are summed. Returns the generation loss of all members, given this one's part;
    /// the same bits on all of them.
    pub(super) fn finish_sum(&mut self, generation: f64) -> Result<f64, GroupError> {
        let Self::Members { member, .. } = self else { return Ok(generation) };
        member.group.finish_sum()?;
        Ok(member.group.exchange_number(generation, member.timeout)?.into_iter().sum())
    }

    /// An error of a backward pass: the group's, if a sum of gradients failed in it. Leaves the group.
    pub(super) fn backward_error(&mut self, source: TchError) -> LearnerError {
        let failure = match self {
            Self::Alone => None,
            Self::Members { member, .. } => member.group.fail_backward(),
        };
        failure.map_or(LearnerError::Backward { source }, LearnerError::Collective)
    }
}
