//! What names, labels and keys of Kubernetes look like (`k8s.io/apimachinery/pkg/util/validation`), each with the words for a message.

/// Longest DNS label, label value and name part of a qualified name.
const LABEL: usize = 63;
/// Longest DNS subdomain, and longest key of a `ConfigMap`.
const SUBDOMAIN: usize = 253;
/// Longest name of a port (RFC 6335).
const PORT_NAME: usize = 15;

/// A kind of name: whether a text is one, and what it has to be.
pub(super) struct Syntax {
    pub(super) holds: fn(&str) -> bool,
    pub(super) rule: &'static str,
}

pub(super) const DNS_LABEL: Syntax =
    Syntax { holds: is_dns_label, rule: "must be at most 63 lower-case letters, digits and '-', and begin and end with a letter or digit" };

pub(super) const DNS_SUBDOMAIN: Syntax = Syntax {
    holds: is_dns_subdomain,
    rule: "must be at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of every part",
};

pub(super) const QUALIFIED_NAME: Syntax = Syntax {
    holds: is_qualified_name,
    rule: "must be at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, after an optional DNS name and '/'",
};

pub(super) const LABEL_VALUE: Syntax = Syntax {
    holds: is_label_value,
    rule: "must be empty or at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
};

/// As of Kubernetes 1.34, and by default from 1.32 on.
pub(super) const ENV_NAME: Syntax =
    Syntax { holds: is_env_name, rule: "must be the name of an environment variable: printable ASCII characters other than '='" };

pub(super) const PORT: Syntax = Syntax {
    holds: is_port_name,
    rule: "must be at most 15 lower-case letters, digits and single '-', with a letter in it and no '-' at an end",
};

pub(super) const CONFIG_KEY: Syntax =
    Syntax { holds: is_config_key, rule: "must be at most 253 letters, digits, '-', '_' and '.', and not begin with '..'" };

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Not empty, of `inner` characters, with an `outer` one at both ends.
fn has_ends(text: &str, outer: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| inner(*byte)) && bytes.first().is_some_and(|byte| outer(*byte)) && bytes.last().is_some_and(|byte| outer(*byte))
}

fn is_dns_part(text: &str) -> bool {
    has_ends(text, is_lower_alphanumeric, |byte| is_lower_alphanumeric(byte) || byte == b'-')
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= LABEL && is_dns_part(text)
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN && text.split('.').all(is_dns_part)
}

fn is_label_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= LABEL && has_ends(text, |byte| byte.is_ascii_alphanumeric(), inner)
}

fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_part(name),
        None => is_label_part(text),
    }
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_part(text)
}

fn is_env_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

fn is_port_name(text: &str) -> bool {
    text.len() <= PORT_NAME && is_dns_part(text) && !text.contains("--") && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn is_config_key(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= SUBDOMAIN && text.bytes().all(allowed) && text != "." && !text.starts_with("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(syntax: &Syntax, right: &[&str], wrong: &[&str]) {
        for text in right {
            assert!((syntax.holds)(text), "{text} is refused: {}", syntax.rule);
        }
        for text in wrong {
            assert!(!(syntax.holds)(text), "{text} is accepted: {}", syntax.rule);
        }
    }

    #[test]
    fn names_are_judged_at_their_boundaries() {
        let long = "a".repeat(64);
        let (label, longer) = (&long[1..], long.as_str());
        check(&DNS_LABEL, &["a", "0", "a-b", label], &["", "-a", "a-", "A", "a.b", "a_b", longer]);
        let domain = format!("{}.{}", "a".repeat(200), "b".repeat(52));
        check(&DNS_SUBDOMAIN, &["a", "a.b-c.d", &domain], &["", ".a", "a.", "a..b", "a.-b", "A.b", &format!("{domain}b")]);
        check(
            &QUALIFIED_NAME,
            &["a", "A_b.c-d", "a.b/C", label, &format!("a.b/{label}")],
            &["", "/a", "a/", "a/b/c", "A.b/c", "-a", "a b", longer],
        );
        check(&LABEL_VALUE, &["", "a", "A_b.c", label], &["-", "a/b", "a b", "é", longer]);
        check(&ENV_NAME, &["A", "a b", "1", "a.b-c"], &["", "A=B", "é", "a\tb"]);
        check(&PORT, &["http", "a-1", "a23456789012345"], &["", "1", "-a", "a--b", "A", "a234567890123456"]);
        check(&CONFIG_KEY, &["a", ".a", "A_b-c.d"], &["", ".", "..", "..a", "a/b"]);
    }
}
