//! What the members of a step exchange, in this order: counts and wishes, unless the caller's members have told each other; contrastive features, and the sums of their similarities;
//! gradients; losses.
//!
//! One member alone takes the same path and exchanges nothing. Which exchanges take place depends on the gathered counts only, and so is
//! the same on all members.

use std::{ops::Range, time::Duration};

use lcl_trainer_config::GradientCompression;
use tch::{TchError, Tensor};

use super::{
    LearnerError,
    by_source::PartLosses,
    exact::shards_of,
    shard_gradients::{ShardGradients, add_beside, piece_length, pieces},
    tree::{Node, PartialSums, nodes_of},
};
use crate::{
    collectives::{Group, GroupError},
    loss::Counts,
    model::Parameter,
    probe::{self, Phase},
    step_span,
};

/// A member's place in a step of several members.
#[derive(Debug)]
pub struct MemberStep<'a> {
    /// The members; in use for this step alone.
    pub group: &'a mut Group,
    /// A number that all members learn of in this step, to agree by: a wish to leave, to save, to reconfigure. Its meaning is the caller's.
    pub wish: i64,
    /// Counts of every member in rank order, or in exact mode of every shard, when the caller's members have told each other: then nothing is
    /// exchanged for them, and no wishes.
    pub counts: Option<&'a [Counts]>,
    /// Of every single exchange.
    pub timeout: Duration,
}

/// What the members said in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Every member's wish, in rank order; the same on all members. Empty when [`MemberStep::counts`] were given. A wish read at one step takes effect after the next one.
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
        if let Some(counts) = member.counts {
            return Ok(counts.to_vec());
        }
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

    /// Own rank, and how many members there are.
    pub(super) fn place(&self) -> (usize, usize) {
        match self {
            Self::Alone => (0, 1),
            Self::Members { member, .. } => (member.group.rank(), member.group.world_size()),
        }
    }

    /// Features of all members in rank order, given the `[n, E]` of this one and the number of rows of each.
    pub(super) fn features(&mut self, images: Tensor, texts: Tensor, rows: &[u64]) -> Result<GlobalFeatures, GroupError> {
        if matches!(self, Self::Alone) {
            return Ok(GlobalFeatures { images, texts, start: 0 });
        }
        let failed = |source| GroupError::Tensor { operation: "joining features", source };
        // One exchange for both.
        let pairs = Tensor::f_stack(&[&images, &texts], 1).map_err(failed)?;
        let gathered = self.gather_rows(&pairs, rows)?;
        let side = |index| gathered.f_select(1, index)?.f_contiguous();
        let start = rows.iter().take(self.place().0).sum::<u64>() as i64;
        Ok(GlobalFeatures { images: side(0).map_err(failed)?, texts: side(1).map_err(failed)?, start })
    }

    /// Rows of all members in rank order, given this one's and the number of rows of each.
    pub(super) fn gather_rows(&mut self, own: &Tensor, rows: &[u64]) -> Result<Tensor, GroupError> {
        let Self::Members { member, .. } = self else { return Ok(own.shallow_clone()) };
        let failed = |source| GroupError::Tensor { operation: "gathering rows", source };
        let travels = own.f_to_device(member.group.device()).and_then(|own| own.f_contiguous()).map_err(failed)?;
        let gathered = member.group.all_gather_rows(&travels, rows, member.timeout)?;
        gathered.f_to_device(own.device()).map_err(failed)
    }

    /// Contrastive images of every member, given those of every shard.
    pub(super) fn rows_of_members(&self, shards: &[Counts]) -> Vec<u64> {
        let (_, world) = self.place();
        (0..world).map(|rank| shards[shards_of(rank, world, shards.len())].iter().map(|counts| counts.contrast).sum()).collect()
    }

    /// Shards of every member.
    fn shards_of_members(&self, total: usize) -> Vec<u64> {
        let (_, world) = self.place();
        (0..world).map(|rank| shards_of(rank, world, total).len() as u64).collect()
    }

    /// Counts of all shards, given those of this member.
    pub(super) fn shard_counts(&mut self, own: &[Counts], total: usize) -> Result<Vec<Counts>, GroupError> {
        let rows = self.shards_of_members(total);
        let Self::Members { member, agreement } = self else { return Ok(own.to_vec()) };
        if let Some(counts) = member.counts {
            return Ok(counts.to_vec());
        }
        let numbers: Vec<i64> = own.iter().flat_map(|counts| [counts.predictions as i64, counts.contrast as i64, member.wish]).collect();
        let failed = |source| GroupError::Tensor { operation: "exchanging counts", source };
        let numbers = Tensor::f_from_slice(&numbers).and_then(|numbers| numbers.f_view([-1, 3])).map_err(failed)?;
        let all = member.group.all_gather_rows(&numbers, &rows, member.timeout)?;
        let all = all.f_view([-1]).and_then(|all| Vec::<i64>::try_from(&all)).map_err(failed)?;
        let wishes: Vec<i64> = all.chunks_exact(3).map(|numbers| numbers[2]).collect();
        // Each member has a shard; its first one tells.
        let firsts = rows.iter().scan(0, |start, count| Some(std::mem::replace(start, *start + *count as usize)));
        agreement.wishes = firsts.map(|first| wishes[first]).collect();
        Ok(all
            .chunks_exact(3)
            .map(|numbers| Counts { predictions: numbers[0].unsigned_abs(), contrast: numbers[1].unsigned_abs() })
            .collect())
    }

    /// The losses of all shards together, given those of this member's; added in the order of the shards, so the same bits on all members,
    /// however many there are.
    pub(super) fn shard_losses(&mut self, own: &[PartLosses], total: usize) -> Result<PartLosses, GroupError> {
        let rows = self.shards_of_members(total);
        let sources = own.first().map_or(0, |losses| losses.sources.len());
        let width = PartLosses::width(sources);
        let mut numbers: Vec<f64> = own.iter().flat_map(PartLosses::numbers).collect();
        if let Self::Members { member, .. } = self {
            probe::reach(Phase::Reduced);
            let failed = |source| GroupError::Tensor { operation: "exchanging losses", source };
            let own = Tensor::f_from_slice(&numbers).and_then(|numbers| numbers.f_view([-1, width as i64])).map_err(failed)?;
            let all = member.group.all_gather_rows(&own, &rows, member.timeout)?;
            numbers = all.f_view([-1]).and_then(|all| Vec::<f64>::try_from(&all)).map_err(failed)?;
        }
        let mut sum = PartLosses::new(sources);
        for shard in numbers.chunks_exact(width) {
            sum.add_numbers(shard);
        }
        Ok(sum)
    }

    /// Compares the gradient of a shard, where this member has one of it, with that of the other member that has computed it; all members come
    /// to the same answer.
    pub(super) fn compare(&mut self, shard: usize, found: Option<u64>) -> Result<(), LearnerError> {
        let Self::Members { member, .. } = self else { return Ok(()) };
        let own = [i64::from(found.is_some()), found.unwrap_or_default().cast_signed()];
        let all = member.group.exchange(&own, member.timeout)?;
        let computed: Vec<(usize, i64)> =
            (0..).zip(&all).filter_map(|(rank, numbers)| Some((rank, *numbers.get(1).filter(|_| numbers[0] == 1)?))).collect();
        match computed.as_slice() {
            [(first, one), (second, other)] if one != other => {
                member.group.settle(member.timeout);
                Err(LearnerError::Unequal { shard, ranks: [*first, *second] })
            }
            _ => Ok(()),
        }
    }

    /// The sum over all shards along the tree, given this member's shards from left to right, each a list of gradients in the order of the
    /// parameters; the same bits on all members, however many there are.
    ///
    /// Every member finishes the tree for an equal part of all numbers, and gives it to all. What is added for the way is added piece by
    /// piece, so that no sum is written to memory and read again.
    pub(super) fn sum_along_tree(&mut self, own: ShardGradients, total: usize) -> Result<Vec<Tensor>, GroupError> {
        let operation = "summing along the tree";
        let _span = step_span!("sum along the tree");
        let failed = |source| GroupError::Tensor { operation, source };
        let incomplete = || GroupError::Argument { operation, reason: "not every shard was summed".to_owned() };
        let Self::Members { member, .. } = self else { return own.into_sum().map_err(failed)?.ok_or_else(incomplete) };
        let (rank, world) = (member.group.rank(), member.group.world_size());
        let place = member.group.device();
        let (length, device) = (own.numbers(), own.device().ok_or_else(incomplete)?);
        let part = length.div_euclid(world as i64) + 1;
        let bounds = |rank: usize| {
            let start = (rank as i64 * part).min(length);
            start..(start + part).min(length)
        };
        let nodes: Vec<_> = (0..world).map(|from| nodes_of(shards_of(from, world, total), total)).collect();
        let parts: Vec<Range<i64>> = (0..world).map(bounds).collect();
        let sent = own.pack(&parts, nodes[rank].len()).map_err(failed)?.ok_or_else(incomplete)?;
        let sent = sent.f_to_device(place).map_err(failed)?;
        let shapes = own.into_shapes();
        let count_of = |rank: usize| bounds(rank).end - bounds(rank).start;
        let sent_counts: Vec<i64> = (0..world).map(|to| nodes[rank].len() as i64 * count_of(to)).collect();
        let count = count_of(rank);
        let received_counts: Vec<i64> = nodes.iter().map(|nodes| nodes.len() as i64 * count).collect();
        probe::reach(Phase::Bucket(0));
        let received = member.group.all_to_all(&sent, &sent_counts, &received_counts, member.timeout)?;
        drop(sent);
        // Parts of equal length, so that they can be gathered into one vector; what is beyond the end is cut off again.
        let finished = Tensor::f_zeros([part], (received.kind(), place)).map_err(failed)?;
        let nodes: Vec<Node> = nodes.into_iter().flatten().collect();
        for piece in pieces(0..count, piece_length(place)) {
            let mut sums = PartialSums::new(total);
            for (node, start) in nodes.iter().zip((0..).step_by(usize::try_from(count).unwrap_or(usize::MAX))) {
                let next = received.f_narrow(0, start + piece.start, piece.end - piece.start).map_err(failed)?;
                sums.push(*node, next, |sum, next| add_beside(sum, &next)).map_err(failed)?;
            }
            let sum = sums.into_root().ok_or_else(incomplete)?;
            let target = finished.f_narrow(0, piece.start, piece.end - piece.start);
            target.and_then(|mut target| target.f_copy_(&sum).map(drop)).map_err(failed)?;
        }
        drop(received);
        probe::reach(Phase::Bucket(1));
        let whole = member.group.all_gather_flat(&finished, member.timeout)?;
        let whole = whole.f_to_device(device).map_err(failed)?;
        let mut start = 0;
        let parts = shapes.iter().map(|shape| {
            let count: i64 = shape.iter().product();
            start += count;
            whole.f_narrow(0, start - count, count)?.f_view(shape.as_slice())
        });
        parts.collect::<Result<_, _>>().map_err(failed)
    }

    /// Before the last backward pass of micro-batches.
    pub(super) fn prepare_sum(&mut self, parameters: &[Parameter], compression: GradientCompression) -> Result<(), GroupError> {
        let Self::Members { member, .. } = self else { return Ok(()) };
        let parameters: Vec<&Tensor> = parameters.iter().map(|parameter| &parameter.tensor).collect();
        member.group.prepare_sum(&parameters, compression == GradientCompression::Bf16, member.timeout)
    }

    /// After it: for every parameter, whether its gradient still has to be completed. The sum over members waits for all of them.
    pub(super) fn incomplete(&mut self, parameters: &[Parameter]) -> Result<Vec<bool>, GroupError> {
        match self {
            Self::Alone => Ok(parameters.iter().map(|parameter| !parameter.tensor.grad().defined()).collect()),
            Self::Members { member, .. } => Ok(member.group.reached()?.into_iter().map(|reached| !reached).collect()),
        }
    }

    /// After the gradients are complete: succeeds if they are summed. Returns the losses of all members, given this one's parts; the same
    /// bits on all of them.
    pub(super) fn finish_sum(&mut self, own: PartLosses) -> Result<PartLosses, GroupError> {
        let Self::Members { member, .. } = self else { return Ok(own) };
        let summing = step_span!("wait for the sum of gradients");
        member.group.finish_sum()?;
        drop(summing);
        probe::reach(Phase::Reduced);
        let _span = step_span!("losses");
        let all = member.group.exchange_floats(&own.numbers(), member.timeout)?;
        let mut sum = PartLosses::new(own.sources.len());
        for losses in &all {
            sum.add_numbers(losses);
        }
        Ok(sum)
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
