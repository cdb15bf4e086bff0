//! A coordinator's answers: how the job is, and what becomes of a command.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use lcl_coordinator::status_from_proto;
use lcl_proto::v1alpha1::{
    CommandRequest, WatchRequest, command_request::Command, command_response::Accepted, coordinator_client::CoordinatorClient,
};
use lcl_protocol::{HistoryEvent, Status};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// A connection to a coordinator.
pub(crate) struct Asked {
    runtime: Runtime,
    client: CoordinatorClient<Channel>,
}

impl Asked {
    pub(crate) fn connect(coordinator: SocketAddr) -> Result<Self> {
        let runtime = Runtime::new()?;
        let client = runtime.block_on(CoordinatorClient::connect(format!("http://{coordinator}")))?;
        Ok(Self { runtime, client })
    }

    pub(crate) fn status(&mut self) -> Result<Status> {
        let first = async {
            let mut statuses = self.client.watch(WatchRequest {}).await?.into_inner();
            anyhow::Ok(statuses.message().await?.context("no status")?)
        };
        Ok(status_from_proto(self.runtime.block_on(first)?)?)
    }

    pub(crate) fn history(&mut self) -> Result<Vec<HistoryEvent>> {
        Ok(self.status()?.history.into_iter().map(|entry| entry.event).collect())
    }

    pub(crate) fn command(&mut self, command: Command) -> Result<Accepted> {
        let request = CommandRequest { epoch: None, command: Some(command) };
        let answer = self.runtime.block_on(self.client.command(request))?.into_inner();
        answer.accepted.context("nothing was accepted")
    }
}
