//! A test at start-up: two ranks in this process form a group, sum, gather and leave.

use std::{net::IpAddr, thread, time::Duration};

use tch::{Device, TchError, Tensor};

use super::{AbortHandle, Group, GroupError, GroupOptions, MemoryStore};

/// Collectives do not work here.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// An operation failed.
    #[error("rank {rank} of the self-test")]
    Group {
        /// The rank.
        rank: usize,
        /// What failed.
        #[source]
        source: GroupError,
    },
    /// An operation gave a wrong result.
    #[error("{operation} on rank {rank} gave {found:?} instead of {expected:?}")]
    Wrong {
        /// What was asked for.
        operation: &'static str,
        /// The rank.
        rank: usize,
        /// What came.
        found: Vec<f64>,
        /// What is right.
        expected: Vec<f64>,
    },
    /// A gradient could not be computed.
    #[error("computing with tensors on rank {rank}")]
    Tensor {
        /// The rank.
        rank: usize,
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// A rank's thread could not run.
    #[error("the thread of rank {rank} could not run")]
    Thread {
        /// The rank.
        rank: usize,
    },
}

/// Checks that two ranks at `host` can form a group, sum, gather rows, sum gradients and leave.
///
/// Takes about a tenth of a second; `timeout` bounds every operation.
pub fn self_test(host: IpAddr, timeout: Duration) -> Result<(), SelfTestError> {
    let store = MemoryStore::default();
    thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| {
            let options = GroupOptions {
                store: std::sync::Arc::new(store.session()),
                prefix: "self-test".to_owned(),
                rank,
                world_size: 2,
                host,
                device: Device::Cpu,
                timeout,
            };
            thread::Builder::new().name("lcl-self-test".to_owned()).spawn_scoped(scope, move || run(options))
        });
        let mut outcome = Ok(());
        for (rank, thread) in ranks.into_iter().enumerate() {
            let lost = || SelfTestError::Thread { rank };
            let found = thread.map_err(|_| lost()).and_then(|thread| thread.join().map_err(|_| lost())?);
            outcome = outcome.and(found);
        }
        outcome
    })
}

fn run(options: GroupOptions) -> Result<(), SelfTestError> {
    let (rank, timeout) = (options.rank, options.timeout);
    let failed = |source| SelfTestError::Group { rank, source };
    let broken = |source| SelfTestError::Tensor { rank, source };
    let mut group = Group::form(options, &AbortHandle::new()).map_err(failed)?;
    let mut sum = Tensor::from_slice(&[1.0 + rank as f64, 10.0]);
    group.all_reduce(&mut sum, timeout).map_err(failed)?;
    compare("the sum", rank, &sum, &[3.0, 20.0])?;
    // Rank 0 has no row, rank 1 has two.
    let rows = Tensor::from_slice(&[5.0, 6.0]).f_narrow(0, 0, 2 * rank as i64).map_err(broken)?;
    let gathered = group.all_gather_rows(&rows, &[0, 2], timeout).map_err(failed)?;
    compare("the gather", rank, &gathered, &[5.0, 6.0])?;
    let parameter = Tensor::from_slice(&[1.0, 2.0]).f_set_requires_grad(true).map_err(broken)?;
    group.prepare_sum(&[&parameter], false, timeout).map_err(failed)?;
    let loss = parameter.f_mul_scalar(1.0 + rank as f64).and_then(|scaled| scaled.f_sum(None::<tch::Kind>));
    loss.and_then(|loss| loss.f_backward()).map_err(broken)?;
    group.finish_sum().map_err(failed)?;
    compare("the sum of gradients", rank, &parameter.grad(), &[3.0, 3.0])?;
    group.leave(timeout).map_err(failed)
}

fn compare(operation: &'static str, rank: usize, found: &Tensor, expected: &[f64]) -> Result<(), SelfTestError> {
    let found = Vec::<f64>::try_from(found).map_err(|source| SelfTestError::Tensor { rank, source })?;
    // Small whole numbers: sums are exact.
    if found == expected { Ok(()) } else { Err(SelfTestError::Wrong { operation, rank, found, expected: expected.to_vec() }) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn collectives_work_on_this_machine() -> Result<(), SelfTestError> {
        self_test(IpAddr::V4(Ipv4Addr::LOCALHOST), Duration::from_secs(20))
    }
}
