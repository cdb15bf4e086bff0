//! The answer to S3's `ListObjectsV2`.

use std::fmt::Write;

use anyhow::{Result, ensure};

/// As S3 does it, whatever is asked for.
const LARGEST_PAGE: usize = 1_000;

/// What was asked for.
#[derive(Debug)]
pub(super) struct Listing {
    prefix: String,
    delimiter: String,
    /// Names after this one.
    after: String,
    page: usize,
}

/// An object in the list.
pub(super) struct Object {
    pub(super) key: String,
    pub(super) length: u64,
    pub(super) e_tag: String,
    pub(super) modified: String,
}

impl Listing {
    pub(super) fn parse(query: &str) -> Result<Self> {
        let mut listing = Self { prefix: String::new(), delimiter: String::new(), after: String::new(), page: LARGEST_PAGE };
        let mut version = String::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "list-type" => version = value.into_owned(),
                "prefix" => listing.prefix = value.into_owned(),
                "delimiter" => listing.delimiter = value.into_owned(),
                // A token of ours is the last name of the page before.
                "continuation-token" | "start-after" => listing.after = listing.after.max(value.into_owned()),
                "max-keys" => listing.page = value.parse::<usize>()?.min(LARGEST_PAGE),
                _ => {}
            }
        }
        ensure!(version == "2", "only ListObjectsV2 (list-type=2) is served");
        ensure!(listing.delimiter.is_empty() || listing.delimiter == "/", "the delimiter {:?}: only / is served", listing.delimiter);
        Ok(listing)
    }

    /// Lists the objects `folder` + number, of which there are `count` with ascending names; `None` are not there.
    pub(super) fn answer(
        &self,
        bucket: &str,
        count: u32,
        key: impl Fn(u32) -> String,
        object: impl Fn(u32) -> Option<Object>,
    ) -> Result<String> {
        let mut body = String::new();
        let (mut listed, mut last) = (0, None);
        let mut number = first(count, |number| key(number) >= self.prefix && key(number) > self.after);
        let mut truncated = false;
        while number < count {
            let name = key(number);
            let Some(rest) = name.strip_prefix(&self.prefix) else { break };
            if let Some((folder, _)) = rest.split_once('/').filter(|_| !self.delimiter.is_empty()) {
                // All objects lie in one folder: it stands for them all.
                write!(body, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&format!("{}{folder}/", self.prefix)))?;
                listed += 1;
                break;
            }
            number += 1;
            let Some(object) = object(number - 1) else { continue };
            if listed == self.page {
                truncated = true;
                break;
            }
            write!(
                body,
                "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
                escape(&object.key),
                object.modified,
                escape(&object.e_tag),
                object.length
            )?;
            listed += 1;
            last = Some(name);
        }
        let token = last.filter(|_| truncated).map(|last| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&last)));
        Ok(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name>\
             <Prefix>{}</Prefix><KeyCount>{listed}</KeyCount><MaxKeys>{}</MaxKeys><IsTruncated>{truncated}</IsTruncated>{}{body}</ListBucketResult>",
            escape(bucket),
            escape(&self.prefix),
            self.page,
            token.unwrap_or_default()
        ))
    }
}

/// The first of `count` numbers for which this holds; it holds for all later ones.
fn first(count: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// Text in XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
