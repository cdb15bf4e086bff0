//! Regular expressions of the schema (RE2, as the API server uses) and what they mean in words, for messages written offline.

/// An absolute path in the container without a `..` component (which would lead out of the volume it names).
pub(crate) const ABSOLUTE_PATH: &str = r"^(/(\.?|\.?[^/.][^/]*|\.\.[^/]+))+$";

/// Where data lie: as an absolute path, or the URI of an object.
pub(crate) const DATA_PLACE: &str = r"^((/(\.?|\.?[^/.][^/]*|\.\.[^/]+))+|(s3|gs|az|https?)://[^/?#]+/.+)$";

/// A place for checkpoints: an absolute local path, or a bucket with an optional prefix, no part of which is empty.
pub(crate) const CHECKPOINT_URI: &str = r"^(file:///[^?#]*|(s3|gs|az)://[^/?#]+(/[^/?#]+)*/?)$";

/// A number of something, as Kubernetes writes it.
pub(crate) const QUANTITY: &str = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

/// Who runs a job: a domain, `/` and a path, as batch Jobs have it.
pub(crate) const MANAGER_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/\-._~%!$&'()*+,;=:]+$";

/// A job's name. Stricter than a pod's: it begins a Service's name, which must begin with a letter, and pods' host names, which hold no dot.
pub(crate) const JOB_NAME: &str = "^[a-z]([-a-z0-9]*[a-z0-9])?$";

/// The end of a file's name, without the dot before it: letters, digits, `-` and `_` in parts between dots. In lower case, since names are
/// compared without regard to case.
pub(crate) const SAMPLE_KEY: &str = r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$";

/// A field of a JSON object: names with dots between them.
pub(crate) const JSON_PATH: &str = r"^[^.]+(\.[^.]+)*$";

/// The name of a source of a mixture, which becomes a part of metrics' names.
pub(crate) const SOURCE_NAME: &str = "^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// What a value has to be to match one of this crate's patterns; `None` for a pattern of another origin.
#[must_use]
pub fn explain_pattern(pattern: &str) -> Option<&'static str> {
    match pattern {
        ABSOLUTE_PATH => Some("must be an absolute path without a `..` component"),
        DATA_PLACE => Some("must be an absolute path without a `..` component, or a URI such as s3://bucket/a.tar"),
        CHECKPOINT_URI => Some("must be a URI such as file:///runs/a, s3://bucket/a, gs://bucket/a or az://container/a"),
        QUANTITY => Some("must be a number with at most one suffix and no space, such as 500m, 2, 1.5, 32Gi or 100M"),
        MANAGER_NAME => Some("must be a domain, '/' and a name, such as kueue.x-k8s.io/multikueue"),
        SAMPLE_KEY => Some("must be the ending of a file's name without its first dot, in lower case, such as jpg or seg.png"),
        JSON_PATH => Some("must be a field of the sample's json, such as caption or meta.alt_text"),
        JOB_NAME => Some("must begin with a letter, hold only lower-case letters, digits and '-', and not end in '-'"),
        SOURCE_NAME => Some("must hold only lower-case letters, digits, '-' and '_', and begin and end with a letter or digit"),
        _ => None,
    }
}
