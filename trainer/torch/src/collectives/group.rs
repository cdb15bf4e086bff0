//! A formed group and its operations.

use std::{fmt, sync::Arc, time::Duration};

use tch::{Device, Kind, TchError, Tensor};

use super::{
    abort::AbortHandle,
    error::GroupError,
    form::{self, GroupOptions},
    store::Store,
};
use crate::shim::{ShimError, collectives::RawGroup};

/// Sizes of the buckets in which gradients are summed: `DistributedDataParallel`'s (libtorch's `reducer.hpp`). The first is small, so that
/// the exchange starts early.
const FIRST_BUCKET_BYTES: usize = 1 << 20;
const BUCKET_BYTES: usize = 25 << 20;

/// Where a parameter's values lie, and how many there are: tells one list of parameters from another.
type Place = (usize, usize);

/// The members of one generation. All members call the same operations in the same order, with the same shapes.
///
/// Every tensor is contiguous and in host memory. Every operation returns within its time-out or soon after an abort; an error closes the
/// group.
pub struct Group {
    /// Gone after an error.
    live: Option<RawGroup>,
    abort: AbortHandle,
    store: Arc<dyn Store>,
    prefix: String,
    rank: usize,
    world_size: usize,
    attached: Vec<Place>,
}

impl fmt::Debug for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, rank, world_size, .. } = self;
        write!(formatter, "Group({prefix}: rank {rank} of {world_size}, live: {})", self.is_live())
    }
}

impl Group {
    /// Waits until all members are there. `abort` ends this wait, and later every operation of the group.
    pub fn form(options: GroupOptions, abort: &AbortHandle) -> Result<Self, GroupError> {
        let (rank, world_size) = (options.rank, options.world_size);
        let (store, prefix) = (Arc::clone(&options.store), options.prefix.clone());
        let live = form::form(options, abort)?;
        Ok(Self { live: Some(live), abort: abort.clone(), store, prefix, rank, world_size, attached: Vec::new() })
    }

    /// This member, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of members.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Whether the group has neither failed nor been closed.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Leaves the group together with the others, once all have completed every operation before. They meet in the store: an exchange in the
    /// group itself would be disturbed by whoever leaves first.
    ///
    /// Plain [`Group::close`] can fail an operation that another member is just about to complete. An error is no failure of anything
    /// before; the group is closed either way.
    pub fn leave(mut self, timeout: Duration) -> Result<(), GroupError> {
        if !self.is_live() {
            return Err(GroupError::Closed { operation: "leaving" });
        }
        let (left, all_left) = (format!("{}/left", self.prefix), format!("{}/all-left", self.prefix));
        let meet = || {
            if self.store.add(&left, 1, timeout)? == self.world_size as i64 {
                self.store.set(&all_left, &[], timeout)?;
            }
            self.store.wait(&[&all_left], timeout)
        };
        let outcome = meet().map_err(GroupError::Leave);
        self.close();
        outcome
    }

    /// Leaves the group. Other members' operations that need this one fail. Returns when nothing of the group runs any more.
    pub fn close(&mut self) {
        self.abort.disconnect();
        self.attached.clear();
        self.live = None;
    }

    /// Replaces `tensor` by the sum over all members.
    pub fn all_reduce(&mut self, tensor: &mut Tensor, timeout: Duration) -> Result<(), GroupError> {
        self.run("all-reduce", &[tensor], |live| live.all_reduce(tensor, timeout))
    }

    /// Replaces `tensor` by that of member `root`.
    pub fn broadcast(&mut self, tensor: &mut Tensor, root: usize, timeout: Duration) -> Result<(), GroupError> {
        self.check_rank("broadcast", root, None)?;
        self.run("broadcast", &[tensor], |live| live.broadcast(tensor, root, timeout))
    }

    /// Every member's `tensor`, in rank order. They have the same shape and type everywhere.
    pub fn all_gather(&mut self, tensor: &Tensor, timeout: Duration) -> Result<Vec<Tensor>, GroupError> {
        let operation = "all-gather";
        let world_size = self.world_size;
        let outputs = (0..world_size).map(|_| Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))).collect::<Result<Vec<_>, _>>();
        let outputs = outputs.map_err(|source| self.fail(GroupError::Tensor { operation, source }))?;
        self.run(operation, &[tensor], |live| live.all_gather(tensor, &outputs, timeout))?;
        Ok(outputs)
    }

    /// The rows of all members, `[Σ counts, …]` in rank order. `tensor` is `[counts[rank], …]`; `counts` is the same on all members.
    ///
    /// Shorter members are padded on the way. Nothing travels when no member has a row.
    pub fn all_gather_rows(&mut self, tensor: &Tensor, counts: &[u64], timeout: Duration) -> Result<Tensor, GroupError> {
        let operation = "all-gather of rows";
        let own = counts.get(self.rank).copied();
        let rows = tensor.size().first().map(|rows| rows.unsigned_abs());
        if counts.len() != self.world_size || rows.is_none() || own != rows {
            let reason = format!("rank {} has shape {:?}, the counts are {counts:?}", self.rank, tensor.size());
            return Err(self.fail(GroupError::Argument { operation, reason }));
        }
        let longest = counts.iter().copied().max().unwrap_or_default() as i64;
        if longest == 0 {
            return tensor.f_detach().map_err(|source| self.fail(GroupError::Tensor { operation, source }));
        }
        let padded = pad_rows(tensor, longest).map_err(|source| self.fail(GroupError::Tensor { operation, source }))?;
        let gathered = self.all_gather(&padded, timeout)?;
        let join = || -> Result<Tensor, TchError> {
            let cut = gathered.iter().zip(counts).map(|(part, count)| part.f_narrow(0, 0, *count as i64));
            Tensor::f_cat(&cut.collect::<Result<Vec<_>, _>>()?, 0)
        };
        join().map_err(|source| self.fail(GroupError::Tensor { operation, source }))
    }

    /// Returns when every member has called it.
    pub fn barrier(&mut self, timeout: Duration) -> Result<(), GroupError> {
        // Nothing travels for a tensor without a number.
        self.exchange(&[0], timeout).map(drop)
    }

    /// Every member's numbers, in rank order; all members give equally many, at least one. A barrier that carries counts and flags.
    pub fn exchange(&mut self, numbers: &[i64], timeout: Duration) -> Result<Vec<Vec<i64>>, GroupError> {
        let operation = "exchange of numbers";
        if numbers.is_empty() {
            return Err(self.fail(GroupError::Argument { operation, reason: "there is no number".to_owned() }));
        }
        let gathered = self.all_gather(&Tensor::from_slice(numbers), timeout)?;
        let read = gathered.iter().map(Vec::<i64>::try_from).collect::<Result<Vec<_>, _>>();
        read.map_err(|source| self.fail(GroupError::Tensor { operation, source }))
    }

    /// Every member's number, in rank order.
    pub fn exchange_number(&mut self, number: f64, timeout: Duration) -> Result<Vec<f64>, GroupError> {
        let operation = "exchange of a number";
        let gathered = self.all_gather(&Tensor::from_slice(&[number]), timeout)?;
        let read = gathered.iter().map(|tensor| tensor.f_double_value(&[0])).collect::<Result<Vec<_>, _>>();
        read.map_err(|source| self.fail(GroupError::Tensor { operation, source }))
    }

    /// Sends `tensor` to a member that receives it under the same tag.
    pub fn send(&mut self, tensor: &Tensor, to: usize, tag: u16, timeout: Duration) -> Result<(), GroupError> {
        self.check_rank("send", to, Some(self.rank))?;
        self.run("send", &[tensor], |live| live.send(tensor, to, tag, timeout))
    }

    /// Fills `tensor` with what a member sends under the same tag, of the same shape and type.
    pub fn receive(&mut self, tensor: &mut Tensor, from: usize, tag: u16, timeout: Duration) -> Result<(), GroupError> {
        self.check_rank("receive", from, Some(self.rank))?;
        self.run("receive", &[tensor], |live| live.receive(tensor, from, tag, timeout))
    }

    /// From now on, and until every parameter's gradient was accumulated once more, gradients are summed over all members while the
    /// backward pass runs. What was accumulated before is part of the sum.
    ///
    /// `parameters` are leaves that require gradients, in the same order on all members.
    pub(crate) fn prepare_sum(&mut self, parameters: &[&Tensor], timeout: Duration) -> Result<(), GroupError> {
        let operation = "preparing the sum of gradients";
        let places: Vec<Place> = parameters.iter().map(|tensor| (tensor.data_ptr() as usize, tensor.numel())).collect();
        if self.attached != places {
            self.run(operation, parameters, |live| live.attach(parameters, FIRST_BUCKET_BYTES, BUCKET_BYTES))?;
            self.attached = places;
        }
        self.run(operation, &[], |live| live.prepare(timeout))
    }

    /// Which parameters had a gradient accumulated since [`Group::prepare_sum`]. The sum waits for the others.
    pub(crate) fn reached(&mut self) -> Result<Vec<bool>, GroupError> {
        let count = self.attached.len();
        self.run("reading which gradients are there", &[], |live| live.reached(count))
    }

    /// Succeeds only if every gradient was summed over all members without an error.
    pub(crate) fn finish_sum(&mut self) -> Result<(), GroupError> {
        self.run("summing gradients", &[], RawGroup::finish)
    }

    /// After an error in a backward pass: closes the group, and tells whether the sum of gradients was the reason.
    pub(crate) fn fail_backward(&mut self) -> Option<GroupError> {
        let failure = self.live.as_mut().and_then(RawGroup::bucket_failure);
        let aborted = self.abort.is_aborted();
        self.close();
        if aborted { Some(GroupError::Aborted { operation: "summing gradients" }) } else { failure.map(GroupError::Operation) }
    }

    /// Runs one operation; an error closes the group before it is returned.
    fn run<T>(
        &mut self,
        operation: &'static str,
        tensors: &[&Tensor],
        call: impl FnOnce(&mut RawGroup) -> Result<T, ShimError>,
    ) -> Result<T, GroupError> {
        let Some(live) = self.live.as_mut() else { return Err(GroupError::Closed { operation }) };
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.device() != Device::Cpu || !tensor.is_contiguous()) {
            let reason = format!("a tensor of shape {:?} on {:?} is not contiguous host memory", tensor.size(), tensor.device());
            return Err(self.fail(GroupError::Argument { operation, reason }));
        }
        if self.abort.is_aborted() {
            self.close();
            return Err(GroupError::Aborted { operation });
        }
        match call(live) {
            Ok(value) => Ok(value),
            Err(source) => {
                let aborted = self.abort.is_aborted();
                Err(self.fail(if aborted { GroupError::Aborted { operation } } else { GroupError::Operation(source) }))
            }
        }
    }

    fn check_rank(&mut self, operation: &'static str, rank: usize, not: Option<usize>) -> Result<(), GroupError> {
        if rank < self.world_size && Some(rank) != not {
            return Ok(());
        }
        let reason = format!("rank {rank} among {}, own rank is {}", self.world_size, self.rank);
        Err(self.fail(GroupError::Argument { operation, reason }))
    }

    /// Closes the group: the other members wait for an operation that this one will not take part in.
    fn fail(&mut self, error: GroupError) -> GroupError {
        self.close();
        error
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.close();
    }
}

/// `tensor` with zero rows added up to `rows`, detached.
fn pad_rows(tensor: &Tensor, rows: i64) -> Result<Tensor, TchError> {
    let tensor = tensor.f_detach()?;
    let mut shape = tensor.size();
    let Some(first) = shape.first_mut() else { return Ok(tensor) };
    let missing = rows - *first;
    if missing == 0 {
        return tensor.f_contiguous();
    }
    *first = missing;
    let kind: Kind = tensor.kind();
    Tensor::f_cat(&[&tensor, &Tensor::f_zeros(shape, (kind, Device::Cpu))?], 0)
}
