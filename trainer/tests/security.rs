//! A job whose wire is protected: real processes of coordinator and workers, with certificates in files as a pod has them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use lcl_tests::{
    coordinator::Coordinator,
    process::{self, Running, await_condition},
    run::{Run, Workbench},
};
use lcl_trainer_config::ExitCode;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let (key, mut parameters) = (KeyPair::generate()?, CertificateParams::default());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    /// The arguments of a program with a certificate for `name`, which trusts `trusted`. The files lie in `folder`.
    fn issue(&self, folder: &Path, name: &str, trusted: &Self) -> Result<Vec<String>> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?.pem();
        fs::create_dir_all(folder)?;
        let write = |file: &str, text: &str| -> Result<String> {
            let path: PathBuf = folder.join(file);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let [certificate, key, authority] =
            [write("tls.crt", &certificate)?, write("tls.key", &key.serialize_pem())?, write("ca.crt", &trusted.certificate)?];
        Ok(["--tls-certificate".to_owned(), certificate, "--tls-key".to_owned(), key, "--tls-ca".to_owned(), authority].into())
    }
}

fn worker(run: &Run, coordinator: &Coordinator, name: &str, security: &[String]) -> Result<Running> {
    let address = coordinator.address().to_string();
    let place = ["--output", "json", "--coordinator", &address, "--worker", name, "--node", name];
    process::start(run.arguments_of("worker", &place)?.into_iter().chain(security.iter().cloned()))
}

#[test]
fn workers_with_certificates_of_the_jobs_authority_train_and_one_of_another_authority_is_told_what_to_do() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("protected")?);
    let (own, foreign) = (Authority::new()?, Authority::new()?);
    let server = own.issue(&workbench.path("server"), lcl_coordinator::SERVER_NAME, &own)?;
    let server: Vec<&str> = server.iter().map(String::as_str).collect();
    let coordinator = Coordinator::start_with(2, 2, &[&server[..], &["--listen", "127.0.0.1:0"]].concat())?;

    let stranger = worker(&run, &coordinator, "w-9", &foreign.issue(&workbench.path("foreign"), lcl_coordinator::MEMBER_NAME, &own)?)?;
    let told = ["cannot attach", "refuses the certificate in", "foreign/tls.crt", "issue it from that"];
    await_condition("a refusal that says what to do", || {
        let log = stranger.stderr()?;
        Ok(log.lines().any(|line| told.iter().all(|part| line.contains(part))).then_some(()))
    })?;
    // The stranger may have read the refusal before the coordinator writes of it.
    await_condition("the coordinator's line", || Ok(coordinator.log()?.contains("refused a connection").then_some(())))?;

    let workers =
        ["w-0", "w-1"].map(|name| worker(&run, &coordinator, name, &own.issue(&workbench.path(name), lcl_coordinator::MEMBER_NAME, &own)?));
    for worker in workers {
        worker?.wait()?.expect_code(0)?;
    }
    run.expect_same_work(&alone)?;
    stranger.signal(Signal::TERM)?;
    let stranger = stranger.wait()?.expect_code(ExitCode::Preempted.code())?;
    ensure!(!stranger.stderr.contains("group formed"), "{}", stranger.stderr);
    Ok(())
}
