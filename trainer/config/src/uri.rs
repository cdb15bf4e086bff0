//! Which URIs name a folder for a run: the rule that `lcl validate` applies offline and the trainer before it opens a store.
//!
//! Comes in: a URI as the user wrote it. Goes out: nothing, or what it has to be. It is as strict as the library behind the trainer's store
//! (`object_store`), and stricter where that would take the URI for another one: `tests/uris.txt` holds cases that both are tested with.

const FORM: &str = "must be a URI such as file:///runs/a, s3://bucket/a, gs://bucket/a or az://container/a";

/// Checks the URI of a run's folder.
pub fn check_run_uri(uri: &str) -> Result<(), &'static str> {
    let (scheme, rest) = uri.split_once("://").ok_or(FORM)?;
    if uri.contains(['?', '#']) {
        return Err("must end with the folder: `?` and `#` are not part of one, write %3F and %23");
    }
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = decode(path).ok_or("must be UTF-8 where it has `%`")?;
    match scheme {
        "file" if !host.is_empty() || path.is_empty() => Err(FORM),
        "file" if path.contains('\0') => Err("must not hold the character NUL"),
        "file" => Ok(()),
        "s3" | "gs" | "az" => {
            check_bucket(scheme, host)?;
            check_prefix(&path)
        }
        _ => Err(FORM),
    }
}

fn check_bucket(scheme: &str, bucket: &str) -> Result<(), &'static str> {
    let is_of = |text: &str, others: &[char]| text.chars().all(|char| char.is_ascii_alphanumeric() || others.contains(&char));
    if bucket.is_empty() {
        return Err(FORM);
    }
    if scheme != "az" {
        let rule = "must name a bucket of letters, digits, '-', '_' and '.' alone: the endpoint and credentials are in the environment";
        return if is_of(bucket, &['-', '_', '.']) { Ok(()) } else { Err(rule) };
    }
    // Azure's own form names the account too.
    let (container, account) = bucket.split_once('@').unwrap_or((bucket, ""));
    if !container.is_empty() && is_of(container, &['-', '$']) && is_of(account, &['-', '.']) {
        Ok(())
    } else {
        Err("must name a container of letters, digits and '-' alone")
    }
}

/// What follows the bucket.
fn check_prefix(path: &str) -> Result<(), &'static str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(());
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    for part in path.split('/') {
        match part {
            "" => return Err("must not have an empty part (two `/` in a row): an object store takes it for a folder without a name"),
            "." | ".." => return Err("must not have a part `.` or `..`: an object store has no such folders"),
            part if part.chars().any(|char| char.is_ascii_control()) => {
                return Err("must not hold control characters");
            }
            _ => {}
        }
    }
    Ok(())
}

/// `%41` becomes `A`; a `%` without two digits stays. `None`: not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uris_of_the_table_are_judged_as_it_says() {
        let mut cases = 0;
        for line in include_str!("../tests/uris.txt").lines().filter(|line| !line.starts_with('#')) {
            let (verdict, uri) = line.split_once(' ').unwrap();
            assert_eq!(check_run_uri(uri).is_ok(), verdict == "accepted", "{line}: {:?}", check_run_uri(uri));
            cases += 1;
        }
        assert!(cases > 30, "{cases} cases");
    }
}
