//! A real Kubernetes on one machine: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, and on demand nodes of their own
//! containerd, kubelet and kube-proxy, each in a network namespace.
//!
//! Comes in: how many nodes and which images they get. Goes out: a kubeconfig. A cluster is run by one process, `lcl-cluster run`, which
//! takes everything down when its standard input ends or a signal comes; [`Cluster`] is its handle in a test. What a killed run left is
//! swept by the next one that takes the same [`Slot`]: every name and address of a cluster is derived from its slot, so several run side
//! by side and a sweep touches no living one.
//!
//! Nothing of the project's own parts is known here.

mod certificates;
mod command;
mod control_plane;
mod handle;
mod leftovers;
mod node;
mod programs;
mod run;
mod slot;

pub use command::CommandError;
pub use handle::{Cluster, ClusterOptions, HandleError, kubectl_output};
pub use leftovers::Leftovers;
pub use node::why_no_nodes;
pub use programs::{Programs, ProgramsError};
pub use run::{Ready, RunError, RunOptions, run, sweep_dead};
pub use slot::{Slot, SlotError};
