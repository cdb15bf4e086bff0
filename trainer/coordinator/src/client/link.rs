//! The stream of a member: opened when the machine asks for it, read until it ends.

use std::{pin::pin, sync::Arc};

use lcl_proto::v1alpha1::{self as wire, coordinator_client::CoordinatorClient};
use lcl_protocol::MemberEvent;
use lcl_security::{Connector, Transport};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Streaming, transport::Endpoint};

use super::{ClientOptions, Shared, StartError};
use crate::{
    MAX_MESSAGE_BYTES,
    convert::{read_to_member, write_to_coordinator},
};

/// Messages that may wait to be sent before the stream counts as broken: many times what a rendezvous has in flight.
const OUTBOX: usize = 1024;

/// Where the coordinator is. What protects the connection is the connector's matter.
pub(super) fn endpoint(options: &ClientOptions) -> Result<Endpoint, StartError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", options.coordinator))
        .map_err(|source| StartError::Address { coordinator: options.coordinator.clone(), source })?;
    Ok(endpoint.connect_timeout(options.connect_timeout))
}

/// Runs until the last client is dropped.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, transport: impl Transport, mut dropped: mpsc::Receiver<()>) {
    tokio::select! {
        biased;
        _ = dropped.recv() => {}
        () = attach_again_and_again(&shared, &endpoint, &transport) => {}
    }
}

async fn attach_again_and_again(shared: &Shared, endpoint: &Endpoint, transport: &impl Transport) {
    let mut pause = shared.options.first_pause;
    shared.observe(MemberEvent::Tick);
    loop {
        while !shared.lock().wants_stream {
            shared.wake.notified().await;
        }
        match open(shared, endpoint, transport).await {
            Ok(stream) => {
                if talk(shared, stream).await {
                    pause = shared.options.first_pause;
                }
            }
            Err(error) => tracing::warn!(coordinator = shared.options.coordinator, "cannot attach: {error}"),
        }
        // Between half and the whole: members that lost their coordinator together do not all come back at once.
        sleep(pause.mul_f64(0.5 + 0.5 * (shared.options.spread)())).await;
        pause = (pause * 2).min(shared.options.longest_pause);
    }
}

async fn open(shared: &Shared, endpoint: &Endpoint, transport: &impl Transport) -> Result<Streaming<wire::ToMember>, String> {
    let patience = shared.options.connect_timeout;
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let connector = Connector::over(transport.clone(), shared.options.security.clone());
    let refusal = connector.clone();
    let attach = async {
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| describe(&error))?;
        let mut client =
            CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let messages = ReceiverStream::new(messages).map(write_to_coordinator);
        let response = client.attach(messages).await.map_err(|status| in_words(&status))?;
        Ok(response.into_inner())
    };
    let stream = timeout(patience, attach).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")));
    let stream = stream.map_err(|error| refusal.refusal().unwrap_or(error))?;
    {
        let mut state = shared.lock();
        state.wants_stream = false;
        state.outbox = Some(outbox);
    }
    shared.observe(MemberEvent::Connected);
    Ok(stream)
}

/// Carries messages and timers until the stream ends. Whether anything was heard on it.
async fn talk(shared: &Shared, stream: Streaming<wire::ToMember>) -> bool {
    let mut stream = pin!(stream);
    let mut heard = false;
    loop {
        let deadline = {
            let state = shared.lock();
            if state.outbox.is_none() {
                // The machine has dropped it; it knows.
                return heard;
            }
            state.machine.deadline().map(|deadline| shared.start + deadline)
        };
        let woken = shared.wake.notified();
        let reason = tokio::select! {
            biased;
            () = woken => continue,
            () = sleep_until_some(deadline) => {
                shared.observe(MemberEvent::Tick);
                continue;
            }
            message = stream.next() => match message {
                Some(Ok(message)) => match read_to_member(message) {
                    Ok(message) => {
                        heard = true;
                        shared.observe(MemberEvent::Message(message));
                        continue;
                    }
                    Err(error) => describe(&error),
                },
                Some(Err(status)) => in_words(&status),
                None => "the coordinator ended it".to_owned(),
            },
        };
        shared.lock().outbox = None;
        shared.observe(MemberEvent::Disconnected { reason });
        return heard;
    }
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What a call ended with. Its sources tell why a connection broke.
fn in_words(status: &tonic::Status) -> String {
    let text = format!("{}: {}", status.code(), status.message());
    match std::error::Error::source(status) {
        Some(source) => format!("{text}: {}", describe(source)),
        None => text,
    }
}

/// An error with its sources, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}
