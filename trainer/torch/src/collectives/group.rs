//! A formed group and its operations.

use std::{fmt, sync::Arc, time::Duration};

use tch::{Device, Kind, TchError, Tensor};

use super::{
    abort::AbortHandle,
    error::GroupError,
    form::{self, GroupOptions},
    store::Store,
};
use crate::shim::{
    ShimError,
    collectives::{BucketOptions, RawGroup},
    nccl,
};

/// Sizes of the buckets in which gradients are summed: `DistributedDataParallel`'s (libtorch's `reducer.hpp`). The first is small, so that
/// the exchange starts early.
const FIRST_BUCKET_BYTES: usize = 1 << 20;
const BUCKET_BYTES: usize = 25 << 20;

/// Where a parameter's values lie, and how many there are: tells one list of parameters from another.
type Place = (usize, usize);

/// A tensor that is filled with what a member sends under the same tag.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// In host memory, of the sent one's shape and type.
    pub tensor: &'a mut Tensor,
    /// Who sends it.
    pub from: usize,
    /// Told from others between the same two members by this.
    pub tag: u16,
}

/// A tensor that goes to a member.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// In host memory.
    pub tensor: &'a Tensor,
    /// Who gets it.
    pub to: usize,
    /// See [`Incoming::tag`].
    pub tag: u16,
}

/// The members of one generation. All members call the same operations in the same order, with the same shapes.
///
/// Every tensor is contiguous, and in host memory or on [`Group::device`]. Every operation returns within its time-out or soon after an abort; an error closes the
/// group.
pub struct Group {
    /// Gone after an error.
    live: Option<RawGroup>,
    abort: AbortHandle,
    store: Arc<dyn Store>,
    prefix: String,
    rank: usize,
    world_size: usize,
    device: Device,
    /// Parameters whose gradients are summed, and whether they are compressed.
    attached: (Vec<Place>, bool),
    /// Whether gradients are being summed: an operation from [`Group::prepare_sum`] to [`Group::finish_sum`].
    is_summing: bool,
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
        let (device, timeout) = (options.device, options.timeout);
        let live = form::form(options, abort)?;
        let mut group = Self {
            live: Some(live),
            abort: abort.clone(),
            store,
            prefix,
            rank,
            world_size,
            device,
            attached: (Vec::new(), false),
            is_summing: false,
        };
        group.check_devices(timeout)?;
        if let Device::Cuda(index) = device {
            let nccl = nccl::load().map_err(|source| group.fail(GroupError::Nccl { rank, source }))?;
            group.run("forming NCCL's part", &[], |live| live.add_nccl(nccl, index, timeout))?;
        }
        Ok(group)
    }

    /// A member with NCCL and one without would wait for each other.
    fn check_devices(&mut self, timeout: Duration) -> Result<(), GroupError> {
        let kinds = self.exchange(&[i64::from(self.device.is_cuda())], timeout)?;
        if kinds.windows(2).any(|pair| pair[0] != pair[1]) {
            let reason = format!("members with a GPU (1) and without (0) cannot train together: {kinds:?}, in the order of ranks");
            return Err(self.fail(GroupError::Argument { operation: "forming the group", reason }));
        }
        Ok(())
    }

    /// Where tensors travel best: the device that the group was formed for.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
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

    /// Leaves the group. Other members' operations that need this one fail. Returns when nothing of the group runs any more that the caller
    /// could meet: NCCL ends half a second later, on a thread of its own.
    pub fn close(&mut self) {
        self.abort.disconnect();
        self.attached = (Vec::new(), false);
        let Some(live) = self.live.take() else { return };
        self.abort.enter();
        let handle = self.abort.clone();
        live.close(move || handle.closed());
        // An NCCL that hangs is for the rescue (`AbortHandle::with_rescue`), which begins with an abort.
        if !self.abort.wait(Duration::ZERO) {
            self.abort.abort();
        }
    }

    /// Bytes that have come over the group's connections in host memory, as the kernel counts them; none once one is closed.
    #[must_use]
    pub fn received_bytes(&self) -> Option<u64> {
        self.abort.received_bytes()
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
        let outputs =
            (0..world_size).map(|_| Tensor::f_empty(tensor.size(), (tensor.kind(), tensor.device()))).collect::<Result<Vec<_>, _>>();
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

    /// Before all members leave because of what they have told each other: returns when each of them has heard it, or cannot. Without it the
    /// first to leave breaks the exchange of one that is about to complete it, which then does not know why the group ended.
    pub fn settle(&mut self, timeout: Duration) {
        // One that does not come has other reasons to leave.
        let _ = self.barrier(timeout);
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

    /// As [`Group::exchange`].
    pub fn exchange_floats(&mut self, numbers: &[f64], timeout: Duration) -> Result<Vec<Vec<f64>>, GroupError> {
        let operation = "exchange of numbers";
        if numbers.is_empty() {
            return Err(self.fail(GroupError::Argument { operation, reason: "there is no number".to_owned() }));
        }
        let gathered = self.all_gather(&Tensor::from_slice(numbers), timeout)?;
        let read = gathered.iter().map(Vec::<f64>::try_from).collect::<Result<Vec<_>, _>>();
        read.map_err(|source| self.fail(GroupError::Tensor { operation, source }))
    }

    /// Every member's `tensor` of n numbers one behind the other, `[n · members]`. They have the same shape and type everywhere.
    pub fn all_gather_flat(&mut self, tensor: &Tensor, timeout: Duration) -> Result<Tensor, GroupError> {
        let operation = "all-gather";
        let (world_size, count) = (self.world_size as i64, tensor.numel() as i64);
        let prepare = || -> Result<(Tensor, Vec<Tensor>), TchError> {
            let flat = Tensor::f_empty([world_size * count], (tensor.kind(), tensor.device()))?;
            let parts = (0..world_size).map(|rank| flat.f_narrow(0, rank * count, count)).collect::<Result<_, _>>()?;
            Ok((flat, parts))
        };
        let (flat, parts) = prepare().map_err(|source| self.fail(GroupError::Tensor { operation, source }))?;
        self.run(operation, &[tensor], |live| live.all_gather(tensor, &parts, timeout))?;
        Ok(flat)
    }

    /// Sends `sent_counts[r]` numbers of `tensor` to every member r, in rank order, and returns what they sent: `received_counts[r]`
    /// numbers of member r, in rank order. What two members say of each other agrees.
    pub fn all_to_all(
        &mut self,
        tensor: &Tensor,
        sent_counts: &[i64],
        received_counts: &[i64],
        timeout: Duration,
    ) -> Result<Tensor, GroupError> {
        let operation = "all-to-all";
        let fits = sent_counts.len() == self.world_size
            && received_counts.len() == self.world_size
            && sent_counts.iter().sum::<i64>() == tensor.numel() as i64;
        if !fits {
            let reason = format!("{} numbers for {sent_counts:?} to {} members", tensor.numel(), self.world_size);
            return Err(self.fail(GroupError::Argument { operation, reason }));
        }
        let received = Tensor::f_empty([received_counts.iter().sum::<i64>()], (tensor.kind(), tensor.device()));
        let received = received.map_err(|source| self.fail(GroupError::Tensor { operation, source }))?;
        self.run(operation, &[tensor], |live| live.all_to_all(tensor, sent_counts, &received, received_counts, timeout))?;
        Ok(received)
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

    /// Fills tensors with what members send, while others go to some. All are in host memory. So what came just before is passed on while the
    /// next comes.
    ///
    /// One that comes from a [`Group::send`] or another member's `relay` is of the same shape, type and tag there.
    pub fn relay(&mut self, incoming: &mut [Incoming<'_>], outgoing: &[Outgoing<'_>], timeout: Duration) -> Result<(), GroupError> {
        let operation = "passing on";
        let peers = incoming.iter().map(|incoming| incoming.from).chain(outgoing.iter().map(|outgoing| outgoing.to));
        for rank in peers.collect::<Vec<_>>() {
            self.check_rank(operation, rank, Some(self.rank))?;
        }
        let incoming: Vec<_> = incoming.iter().map(|incoming| (&*incoming.tensor, incoming.from, incoming.tag)).collect();
        let outgoing: Vec<_> = outgoing.iter().map(|outgoing| (outgoing.tensor, outgoing.to, outgoing.tag)).collect();
        let tensors: Vec<&Tensor> = incoming.iter().chain(&outgoing).map(|(tensor, ..)| *tensor).collect();
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.device() != Device::Cpu) {
            let reason = format!("a tensor of shape {:?} on {:?} is not in host memory", tensor.size(), tensor.device());
            return Err(self.fail(GroupError::Argument { operation, reason }));
        }
        self.run(operation, &tensors, |live| live.relay(&incoming, &outgoing, timeout))
    }

    /// From now on, and until every parameter's gradient was accumulated once more, gradients are summed over all members while the
    /// backward pass runs. What was accumulated before is part of the sum.
    ///
    /// `parameters` are leaves that require gradients, in the same order on all members. With `compresses` gradients in float32 travel as
    /// bfloat16 and are summed in it: half the bytes, and still the same bits on all members.
    pub(crate) fn prepare_sum(&mut self, parameters: &[&Tensor], compresses: bool, timeout: Duration) -> Result<(), GroupError> {
        let operation = "preparing the sum of gradients";
        let places: Vec<Place> = parameters.iter().map(|tensor| (tensor.data_ptr() as usize, tensor.numel())).collect();
        let attached = (places, compresses);
        if self.attached != attached {
            let options = BucketOptions { first_bucket_bytes: FIRST_BUCKET_BYTES, bucket_bytes: BUCKET_BYTES, compresses };
            self.run(operation, parameters, |live| live.attach(parameters, options))?;
            self.attached = attached;
        }
        self.run(operation, &[], |live| live.prepare(timeout))?;
        self.set_summing(true);
        Ok(())
    }

    /// The sum of gradients is an operation that spans several calls.
    fn set_summing(&mut self, is_summing: bool) {
        if is_summing == self.is_summing {
            return;
        }
        self.is_summing = is_summing;
        if is_summing {
            self.abort.enter();
        } else {
            self.abort.leave();
        }
    }

    /// Which parameters had a gradient accumulated since [`Group::prepare_sum`]. The sum waits for the others.
    pub(crate) fn reached(&mut self) -> Result<Vec<bool>, GroupError> {
        let count = self.attached.0.len();
        self.run("reading which gradients are there", &[], |live| live.reached(count))
    }

    /// Succeeds only if every gradient was summed over all members without an error.
    pub(crate) fn finish_sum(&mut self) -> Result<(), GroupError> {
        let outcome = self.run("summing gradients", &[], RawGroup::finish);
        self.set_summing(false);
        outcome
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
        let place = tensors.first().map_or(Device::Cpu, |tensor| tensor.device());
        let fits = |tensor: &&&Tensor| tensor.device() == place && tensor.is_contiguous() && (place == Device::Cpu || place == self.device);
        if let Some(tensor) = tensors.iter().find(|tensor| !fits(tensor)) {
            let reason = format!(
                "a tensor of shape {:?} on {:?} is not contiguous in host memory or on {:?}",
                tensor.size(),
                tensor.device(),
                self.device
            );
            return Err(self.fail(GroupError::Argument { operation, reason }));
        }
        if self.abort.is_aborted() {
            self.close();
            return Err(GroupError::Aborted { operation });
        }
        self.abort.enter();
        let outcome = call(live);
        self.abort.leave();
        match outcome {
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
    Tensor::f_cat(&[&tensor, &Tensor::f_zeros(shape, (kind, tensor.device()))?], 0)
}
