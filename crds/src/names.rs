//! Names that the resource, its rules and the operator's builders have to agree on.

/// API group.
pub const GROUP: &str = "lcl.dev";
/// API version.
pub const VERSION: &str = "v1alpha1";
/// Kind.
pub const KIND: &str = "LCLTrainingJob";
/// The operator, as `spec.managedBy` names it.
pub const MANAGER: &str = "lcl.dev/lcl-operator";
/// Plural, as it stands in URLs.
pub const PLURAL: &str = "lcltrainingjobs";
/// Name of the container in the worker's pod that runs the trainer. Users add volume mounts and resources to it under this name.
pub const WORKER_CONTAINER: &str = "worker";
/// A worker's pod is `<job>-w-<index>`.
pub const WORKER_INFIX: &str = "-w-";
/// The coordinator's pod and Service are `<job>-coordinator`.
pub const COORDINATOR_SUFFIX: &str = "-coordinator";
/// Most workers of a job: far above the 64 nodes of the paper's run, and small enough for a four-digit pod index.
pub const MAX_WORKERS: i32 = 4096;
/// Longest name of a job. Pod names are DNS labels of at most 63 characters.
pub const MAX_NAME_LENGTH: i64 = 63 - longest_suffix();

const fn longest_suffix() -> i64 {
    let mut digits = 0;
    let mut highest_index = MAX_WORKERS - 1;
    while highest_index > 0 {
        digits += 1;
        highest_index /= 10;
    }
    let worker = WORKER_INFIX.len() + digits;
    (if worker > COORDINATOR_SUFFIX.len() { worker } else { COORDINATOR_SUFFIX.len() }) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_derived_name_fits_a_dns_label_exactly() {
        let job = "j".repeat(MAX_NAME_LENGTH as usize);
        let longest = [format!("{job}{COORDINATOR_SUFFIX}"), format!("{job}{WORKER_INFIX}{}", MAX_WORKERS - 1)]
            .into_iter()
            .map(|name| name.len())
            .max();
        assert_eq!(longest, Some(63));
    }
}
