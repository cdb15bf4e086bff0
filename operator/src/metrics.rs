//! Counters, as Prometheus reads them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lcl_crds::RestartsStatus;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::category::Category;

/// All of them. Names of what every controller has are those of controller-runtime, so that its dashboards work.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<ResultLabel, Counter>,
    reconcile_errors: Family<ControllerLabel, Counter>,
    errors: Family<CategoryLabel, Counter>,
    reconcile_time: Family<ControllerLabel, Histogram, fn() -> Histogram>,
    /// Writes of a status.
    pub(crate) status_writes: Counter,
    restarts: Family<CauseLabel, Counter>,
    jobs: Family<StateLabel, Gauge>,
    leads: Family<LeaseLabel, Gauge>,
    /// Reconciles under way.
    active: Family<ControllerLabel, Gauge>,
    requests: Family<RequestLabel, Counter>,
    memory: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    code: String,
    host: String,
    method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LeaseLabel {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerLabel {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CategoryLabel {
    category: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    cause: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

const CONTROLLER: &str = "lcltrainingjob";

fn reconcile_time_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            errors: Family::default(),
            reconcile_time: Family::new_with_constructor(reconcile_time_buckets),
            status_writes: Counter::default(),
            restarts: Family::default(),
            jobs: Family::default(),
            leads: Family::default(),
            active: Family::default(),
            requests: Family::default(),
            memory: Gauge::default(),
            registry: Mutex::default(),
        };
        let shared = registry.sub_registry_with_prefix("controller_runtime");
        shared.register("reconcile", "Reconciles by result", metrics.reconciles.clone());
        shared.register("reconcile_errors", "Reconciles that failed", metrics.reconcile_errors.clone());
        shared.register("active_workers", "Reconciles under way", metrics.active.clone());
        shared.register_with_unit("reconcile_time", "Time a reconcile takes", Unit::Seconds, metrics.reconcile_time.clone());
        let own = registry.sub_registry_with_prefix("lcl_operator");
        own.register("status_writes", "Writes of a job's status", metrics.status_writes.clone());
        own.register("errors", "Errors that kept something from being done, by what was in the way", metrics.errors.clone());
        own.register("pod_replacements", "Pods that ended before their time, by cause", metrics.restarts.clone());
        own.register("jobs", "Jobs by state", metrics.jobs.clone());
        registry.register("rest_client_requests", "Requests to the API server by answer", metrics.requests.clone());
        registry.register("leader_election_master_status", "Whether this process leads", metrics.leads.clone());
        registry.register_with_unit("process_resident_memory", "Resident memory of this process", Unit::Bytes, metrics.memory.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }

    /// Whether this process leads those that elect by this lease, which it does without an election, too.
    pub(crate) fn set_leads(&self, lease: &str, leads: bool) {
        self.leads.get_or_create(&LeaseLabel { name: lease.to_owned() }).set(leads.into());
    }

    /// Counts an answer of the API server; `code` is what stands for it when there was none, as client-go has it.
    pub(crate) fn count_request(&self, host: &str, method: &str, code: Option<u16>) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.get_or_create(&RequestLabel { code, host: host.to_owned(), method: method.to_owned() }).inc();
    }

    /// A reconcile has begun; it is under way until the guard is dropped.
    pub(crate) fn begin_reconcile(&self) -> Active {
        let gauge = self.active.get_or_create_owned(&ControllerLabel { controller: CONTROLLER });
        gauge.inc();
        Active(gauge)
    }

    /// Counts an error that kept something from being done.
    pub(crate) fn count_error(&self, category: Category) {
        self.errors.get_or_create(&CategoryLabel { category: category.label() }).inc();
    }

    /// A reconcile is over, which failed for this reason.
    pub(crate) fn observe_reconcile(&self, took: Duration, failed: Option<Category>) {
        let result = if failed.is_some() { "error" } else { "success" };
        self.reconciles.get_or_create(&ResultLabel { controller: CONTROLLER, result }).inc();
        let label = ControllerLabel { controller: CONTROLLER };
        if let Some(category) = failed {
            self.reconcile_errors.get_or_create(&label).inc();
            self.count_error(category);
        }
        self.reconcile_time.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Counts what was added to a job's restarts.
    pub(crate) fn count_restarts(&self, old: &RestartsStatus, new: &RestartsStatus) {
        let causes = [
            ("application", old.application, new.application),
            ("infrastructure", old.infrastructure, new.infrastructure),
            ("preemption", old.preemption, new.preemption),
            ("deletion", old.deletion, new.deletion),
        ];
        for (cause, old, new) in causes {
            if let Ok(added @ 1..) = u64::try_from(new.saturating_sub(old)) {
                self.restarts.get_or_create(&CauseLabel { cause: cause.to_owned() }).inc_by(added);
            }
        }
    }

    /// The text of `/metrics`, with the given jobs by state.
    pub(crate) fn render(&self, jobs: &BTreeMap<String, i64>) -> Result<String, fmt::Error> {
        self.jobs.clear();
        for (state, count) in jobs {
            self.jobs.get_or_create(&StateLabel { state: state.clone() }).set(*count);
        }
        self.memory.set(resident_bytes().unwrap_or(0));
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

/// A reconcile under way.
#[derive(Debug)]
pub(crate) struct Active(Gauge);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From `/proc`; `None` where there is none.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_controller_runtime() {
        let metrics = Metrics::new();
        metrics.observe_reconcile(Duration::from_millis(3), Some(Category::ApiServer));
        metrics.set_leads("lcl-operator", true);
        metrics.count_request("example:6443", "GET", Some(200));
        metrics.count_request("example:6443", "PATCH", None);
        let first = metrics.begin_reconcile();
        let _second = metrics.begin_reconcile();
        drop(first);
        let restarts = |deletion| RestartsStatus { total: deletion, deletion, ..RestartsStatus::default() };
        metrics.count_restarts(&restarts(1), &restarts(3));
        let text = metrics.render(&BTreeMap::from([("Running".to_owned(), 2)])).expect("text");
        for line in [
            "controller_runtime_reconcile_total{controller=\"lcltrainingjob\",result=\"error\"} 1",
            "controller_runtime_reconcile_errors_total{controller=\"lcltrainingjob\"} 1",
            "controller_runtime_reconcile_time_seconds_count{controller=\"lcltrainingjob\"} 1",
            "controller_runtime_active_workers{controller=\"lcltrainingjob\"} 1",
            "leader_election_master_status{name=\"lcl-operator\"} 1",
            "rest_client_requests_total{code=\"200\",host=\"example:6443\",method=\"GET\"} 1",
            "rest_client_requests_total{code=\"<error>\",host=\"example:6443\",method=\"PATCH\"} 1",
            "lcl_operator_errors_total{category=\"api_server\"} 1",
            "lcl_operator_pod_replacements_total{cause=\"deletion\"} 2",
            "lcl_operator_jobs{state=\"Running\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000), "resident memory in bytes");
    }
}
