//! From what TLS reports to what a person can act on. Pure.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use crate::SERVER_NAME;

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// What TLS says is wrong, if it is TLS that says so.
pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref::<Error>()
}

/// Why a server did not take a connection: a word for metrics, and a sentence.
pub(crate) fn refusal(error: &io::Error) -> (&'static str, String) {
    let Some(tls) = tls_error(error) else {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ended the connection during the handshake",
            _ => return ("connection", error.to_string()),
        };
        return ("connection", what.to_owned());
    };
    match tls {
        Error::NoCertificatesPresented => ("no_certificate", "it shows no certificate".to_owned()),
        Error::InvalidCertificate(certificate) => invalid(certificate),
        Error::InvalidMessage(_) => ("no_tls", "it does not speak TLS".to_owned()),
        Error::AlertReceived(alert) => {
            ("refused_by_peer", format!("it refuses this coordinator's certificate: {}", alert_in_words(*alert)))
        }
        other => ("handshake", other.to_string()),
    }
}

fn invalid(certificate: &CertificateError) -> (&'static str, String) {
    match certificate {
        // A bad signature: of an authority that bears the same name, as one does that was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("unknown_authority", "its certificate is of another authority".to_owned())
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => ("expired", format!("its certificate: {certificate}")),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("not_valid_yet", format!("its certificate: {certificate}"))
        }
        other => ("invalid_certificate", format!("its certificate: {other}")),
    }
}

fn alert_in_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "it wants a certificate and was shown none".to_owned(),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "it is of another authority".to_owned(),
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet".to_owned(),
        AlertDescription::BadCertificate => "it is not of the right name or kind".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Why a client has no connection to `peer`, and what to do about it; nothing when TLS is not the reason.
pub(crate) fn advice(error: &io::Error, peer: &str, (own, authority): (String, String)) -> Option<String> {
    Some(match tls_error(error)? {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => format!(
            "the certificate of the coordinator at {peer} is of no authority in {authority}: give both ends certificates of one authority"
        ),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("the certificate of the coordinator at {peer} has expired: renew the one that it reads")
        }
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("the certificate of {peer} is not for the name {SERVER_NAME}: issue one that holds this DNS name")
        }
        Error::InvalidCertificate(other) => format!("the certificate of the coordinator at {peer} is refused: {other}"),
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => format!(
            "the coordinator at {peer} refuses the certificate in {own}: it is of another authority than the coordinator's --tls-ca; \
             issue it from that one"
        ),
        Error::AlertReceived(AlertDescription::CertificateExpired) => format!(
            "the coordinator at {peer} refuses the certificate in {own}: it has expired, or is not valid yet; renew it, or set the clock"
        ),
        Error::AlertReceived(alert) => format!("the coordinator at {peer} refuses the certificate in {own}: {}", alert_in_words(*alert)),
        Error::InvalidMessage(_) => {
            format!("{peer} does not speak TLS: start the coordinator with certificates, or this process with --insecure")
        }
        _ => return None,
    })
}
