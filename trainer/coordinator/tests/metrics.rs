//! `/metrics` and `/healthz` of the coordinator's program, over HTTP, while a real member comes and goes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lcl_coordinator::{ClientOptions, MemberClient, Security};
use lcl_protocol::{
    Activity, Identity, Incarnation, MemberCommand, MemberEvent, MemberName, MemberSettings, SourceProgress, StateLabel, TrainingProgress,
};
use serde_json::Value;

/// The longest anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

struct Coordinator {
    child: Child,
    said: Value,
}

impl Coordinator {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lcl-coordinator"))
            .args(["--insecure", "--epoch", "4", "--desired-members", "1", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        Self { child, said: serde_json::from_str(&line).unwrap() }
    }

    fn address(&self, of: &str) -> &str {
        self.said[of].as_str().unwrap()
    }

    /// Status and body of a page.
    fn page(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address("metrics")).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }

    /// Waits for lines of `/metrics`.
    fn wait_for(&self, lines: &[&str]) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let (status, text) = self.page("/metrics");
            assert_eq!(status, "200");
            let missing: Vec<_> = lines.iter().filter(|line| !text.lines().any(|found| found == **line)).collect();
            if missing.is_empty() {
                return text;
            }
            assert!(Instant::now() < end, "no {missing:?} in:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn member(coordinator: &Coordinator, worker: &str, digest: &str) -> (MemberClient, lcl_coordinator::Commands) {
    let identity = Identity {
        name: MemberName { worker: worker.to_owned(), index: 0 },
        incarnation: Incarnation { run: 1, start: 1 },
        node: "n".to_owned(),
        address: "127.0.0.1".to_owned(),
    };
    let settings = MemberSettings {
        identity,
        config_digest: digest.to_owned(),
        machine: None,
        heartbeat_interval: Duration::from_millis(50),
        coordinator_timeout: Duration::from_secs(30),
    };
    let source = |name: &str, generation_loss| SourceProgress {
        name: name.to_owned(),
        samples: 70,
        generation_loss,
        contrastive_loss: None,
        data_wait: Duration::from_millis(250),
    };
    let sources = vec![source("laion", Some(2.5)), source("mmc4", None)];
    let mut options = ClientOptions::new(coordinator.address("address"), Security::Insecure);
    options.activity = Box::new(move || {
        let training = Some(TrainingProgress { loss: Some(1.5), samples_per_second: 40.0 });
        Activity { training, sources: sources.clone(), ..Activity::default() }
    });
    MemberClient::start(options, settings).unwrap()
}

/// Does what the machine says, until it trains.
fn train(client: &MemberClient, commands: &lcl_coordinator::Commands) -> StateLabel {
    loop {
        match commands.next(PATIENCE).expect("the machine always says what comes next") {
            MemberCommand::FormGroup(plan) => client.report(MemberEvent::GroupFormed { generation: plan.generation }).unwrap(),
            MemberCommand::Recover { generation, .. } => client.report(MemberEvent::Recovered { generation, step: 3 }).unwrap(),
            MemberCommand::Train { generation, step } => return StateLabel { step, generation },
            other => panic!("not expected: {other:?}"),
        }
    }
}

#[test]
fn metrics_and_health_are_served_over_http_and_follow_what_happens() {
    let coordinator = Coordinator::start();
    assert_eq!(coordinator.page("/healthz"), ("200".to_owned(), "ok".to_owned()));
    coordinator.wait_for(&["lcl_coordinator_epoch 4", "lcl_coordinator_group 0", "lcl_coordinator_members{state=\"training\"} 0"]);

    let (client, commands) = member(&coordinator, "w-0", "digest");
    let StateLabel { step, generation } = train(&client, &commands);
    assert_eq!(step, 3);
    client.store(generation).set("key", b"value", PATIENCE).unwrap();
    client.report(MemberEvent::CheckpointCommitted { generation, saved: step.into() }).unwrap();
    let (refused, answers) = member(&coordinator, "w-1", "another digest");
    assert!(matches!(answers.next(PATIENCE), Some(MemberCommand::GiveUp(_))));
    drop(refused);
    coordinator.wait_for(&[
        "lcl_coordinator_group 1",
        "lcl_coordinator_step 3",
        "lcl_coordinator_last_checkpoint_step 3",
        "lcl_coordinator_members{state=\"training\"} 1",
        "lcl_coordinator_store_bytes 8",
        "lcl_coordinator_loss 1.5",
        "lcl_coordinator_samples_per_second 40.0",
        "lcl_coordinator_source_samples{source=\"laion\"} 70",
        "lcl_coordinator_source_generation_loss{source=\"laion\"} 2.5",
        "lcl_coordinator_source_data_wait_seconds{source=\"mmc4\"} 0.25",
        // Who has no ticket attaches again with the one it is given.
        "lcl_coordinator_messages_total{direction=\"received\",kind=\"attach\"} 3",
        "lcl_coordinator_messages_total{direction=\"sent\",kind=\"ticket\"} 1",
        "lcl_coordinator_messages_total{direction=\"sent\",kind=\"form\"} 1",
        "lcl_coordinator_refused_peers_total{reason=\"configuration\"} 1",
    ]);

    drop((client, commands));
    coordinator.wait_for(&["lcl_coordinator_losses_total{cause=\"stream_closed\"} 1", "lcl_coordinator_members{state=\"training\"} 0"]);
    let (client, commands) = member(&coordinator, "w-2", "digest");
    let StateLabel { generation, .. } = train(&client, &commands);
    client.report(MemberEvent::Committed { generation, step: 4, agreed: lcl_protocol::Flags::NONE }).unwrap();
    let text = coordinator.wait_for(&["lcl_coordinator_group 2", "lcl_coordinator_step 4"]);
    // No series for a member or a worker.
    assert!(!text.contains("_loss{source=\"mmc4\"}"), "it has none: {text}");
    assert!(!text.contains("w-0") && !text.contains("w-2"), "{text}");
    assert!(text.contains("# UNIT lcl_coordinator_recovery_seconds seconds"), "{text}");
}
