//! How long a request may take, and whether it may go.
//!
//! Every request but a watch has a deadline, from its sending to the last byte of its answer; a watch has one for the beginning of its
//! answer. The deadline of a write is what is left of the lease under which it is sent, less the time on the way, and the API server is
//! told it (`timeout`, as client-go does): so it is over at both ends before another may act. Whether it may go is asked twice, before
//! anything is done for it and when nothing is left to be done but to send it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, Uri, uri::PathAndQuery};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kube::client::DynBody;
use thiserror::Error;
use tokio::time::{self, Instant, Sleep};
use tower::{BoxError, Service};

use crate::{
    clock::BootTime,
    fence::{Fences, Refused, Write},
};

/// The longest that bytes are on their way to the API server and still arrive: TCP is told to give up then. A lost packet is sent again
/// after 0.2 s at first, and three losses in a row fit.
pub(crate) const ON_THE_WAY: Duration = Duration::from_secs(2);

/// Of a client's requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) read: Duration,
    /// At most: less when the lease ends earlier.
    pub(super) write: Duration,
}

/// There was no answer in time.
#[derive(Debug, Error)]
#[error("{method} {path}: the API server did not answer within {limit:.1?}")]
pub(crate) struct NoAnswer {
    method: Method,
    path: String,
    limit: Duration,
}

#[cfg(test)]
impl NoAnswer {
    pub(crate) fn of_a_test() -> Self {
        Self { method: Method::GET, path: "/".to_owned(), limit: Duration::ZERO }
    }
}

/// In which namespace a request writes, and what.
#[derive(Clone, Debug)]
struct Writes(Option<Arc<str>>, Write);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Watch,
    Write,
}

fn kind_of<A>(request: &Request<A>) -> Kind {
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Kind::Write;
    }
    let is_watch = request.uri().query().unwrap_or_default().split('&').any(|part| part == "watch=true" || part == "watch=1");
    if is_watch { Kind::Watch } else { Kind::Read }
}

/// Of `/api/VERSION/namespaces/NAME/…` and `/apis/GROUP/VERSION/namespaces/NAME/…`.
fn namespace_of(uri: &Uri) -> Option<&str> {
    let mut parts = uri.path().split('/').skip(1);
    match parts.next()? {
        "api" => drop(parts.next()?),
        "apis" => drop((parts.next()?, parts.next()?)),
        _ => return None,
    }
    if parts.next()? != "namespaces" {
        return None;
    }
    parts.next().filter(|name| !name.is_empty())
}

/// The same request with a time limit for the API server, and without a search for unknown fields in what is written, of which it would warn:
/// nobody here reads it, and it costs as much as reading the object once more.
fn with_parameters(uri: &Uri, kind: Kind, limit: Duration) -> Option<Uri> {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let validation = if kind == Kind::Write { "fieldValidation=Ignore&" } else { "" };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{path}{separator}{validation}timeout={}ms", limit.as_millis()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Sets the deadlines.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    deadlines: Deadlines,
    fences: Fences,
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S, deadlines: Deadlines, fences: Fences) -> Self {
        Self { inner, deadlines, fences }
    }

    /// How long a request may take; marks a write.
    fn admit<A>(&self, request: &mut Request<A>, kind: Kind) -> Result<Duration, Refused> {
        if kind != Kind::Write {
            return Ok(self.deadlines.read);
        }
        let namespace = namespace_of(request.uri()).map(Arc::from);
        let write = if *request.method() == Method::DELETE { Write::Deletion } else { Write::Other };
        let left = self.fences.left(namespace.as_deref(), write, BootTime::now())?;
        request.extensions_mut().insert(Writes(namespace, write));
        Ok(left.map_or(self.deadlines.write, |left| left.saturating_sub(ON_THE_WAY).min(self.deadlines.write)))
    }
}

impl<S, A, B> Service<Request<A>> for Guarded<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let kind = kind_of(&request);
        let limit = match self.admit(&mut request, kind) {
            Ok(limit) => limit,
            Err(refused) => return Box::pin(async move { Err(refused.into()) }),
        };
        let late = NoAnswer { method: request.method().clone(), path: request.uri().path().to_owned(), limit };
        if kind != Kind::Watch
            && let Some(uri) = with_parameters(request.uri(), kind, limit)
        {
            *request.uri_mut() = uri;
        }
        let end = Instant::now() + limit;
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match time::timeout_at(end, answer).await {
                Ok(answer) => answer?,
                Err(_) => return Err(late.into()),
            };
            Ok(answer.map(|body| -> Box<DynBody> {
                let end = (kind != Kind::Watch).then(|| Box::pin(time::sleep_until(end)));
                Box::new(BoundedBody { body, end, late: Some(late) })
            }))
        })
    }
}

/// The body of an answer, which has to be whole in time.
struct BoundedBody<B> {
    body: B,
    /// `None` for a watch.
    end: Option<Pin<Box<Sleep>>>,
    late: Option<NoAnswer>,
}

impl<B> HttpBody for BoundedBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if let Some(end) = &mut self.end {
            ready!(end.as_mut().poll(context));
            self.end = None;
            return Poll::Ready(self.late.take().map(|late| Err(late.into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Asks whether a write may go, when nothing is left to be done but to send it: fetching a token may have taken a while.
#[derive(Clone)]
pub(super) struct FencedRequests<S> {
    inner: S,
    fences: Fences,
}

impl<S> FencedRequests<S> {
    pub(super) fn new(inner: S, fences: Fences) -> Self {
        Self { inner, fences }
    }
}

impl<S, A> Service<Request<A>> for FencedRequests<S>
where
    S: Service<Request<A>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        if let Some(Writes(namespace, write)) = request.extensions().get()
            && let Err(refused) = self.fences.left(namespace.as_deref(), *write, BootTime::now())
        {
            return Box::pin(async move { Err(refused.into()) });
        }
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tower::{ServiceBuilder, ServiceExt, layer::layer_fn, service_fn};

    use super::*;
    use crate::fence::{ELECTION, Fence, NAMESPACE};

    const DEADLINES: Deadlines = Deadlines { read: Duration::from_secs(30), write: Duration::from_secs(30) };
    const PODS: &str = "/api/v1/namespaces/team/pods";

    /// An answer that begins and never ends.
    struct Endless;

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Pending
        }
    }

    /// Fences of which that of the process was confirmed so long ago.
    fn fences(age: Duration) -> Fences {
        let confirmed = BootTime::from_nanos(BootTime::now().as_nanos() - u64::try_from(age.as_nanos()).expect("a short time"));
        let (process, team) = (Fence::new("system/lease", ELECTION), Fence::new("team/lease", NAMESPACE));
        process.confirm(confirmed);
        team.confirm(confirmed);
        let fences = Fences::new(process);
        fences.add("team", team);
        fences
    }

    fn request(method: Method, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).expect("a request")
    }

    /// What becomes of a request, and what of it was sent. `before` is done between the two questions.
    async fn send(
        fences: &Fences,
        before: impl Fn() + Clone + Send + 'static,
        request: Request<()>,
    ) -> (Result<Response<Box<DynBody>>, BoxError>, Vec<String>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&sent);
        let server = service_fn(move |request: Request<()>| {
            log.lock().expect("the log").push(request.uri().to_string());
            async { Ok::<_, BoxError>(Response::new(Endless)) }
        });
        let guarded = ServiceBuilder::new()
            .layer(layer_fn(|inner| Guarded::new(inner, DEADLINES, fences.clone())))
            .map_request(move |request| {
                before();
                request
            })
            .layer(layer_fn(|inner| FencedRequests::new(inner, fences.clone())))
            .service(server);
        let answer = guarded.oneshot(request).await;
        let sent = sent.lock().expect("the log").clone();
        (answer, sent)
    }

    #[tokio::test(start_paused = true)]
    async fn no_write_is_sent_once_the_lease_was_not_renewed_for_the_deadline() {
        let late = fences(ELECTION.renew_deadline);
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let (answer, sent) = send(&late, || (), request(method.clone(), PODS)).await;
            let refused = answer.err().unwrap_or_else(|| panic!("{method} was sent"));
            assert!(refused.to_string().contains("the lease system/lease was not renewed within 10s"), "{refused}");
            assert_eq!(sent, [""; 0], "{method}");
        }
        let (answer, sent) = send(&late, || (), request(Method::GET, PODS)).await;
        assert!(answer.is_ok() && sent.len() == 1, "looking does no harm");
        let (answer, sent) = send(&fences(Duration::ZERO), || (), request(Method::POST, "/api/v1/namespaces/other/pods")).await;
        assert!(answer.is_err() && sent.is_empty(), "a namespace that is another's");
        let (answer, sent) = send(&Fences::default(), || (), request(Method::POST, PODS)).await;
        assert!(answer.is_ok() && sent.len() == 1, "without an election");
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_namespace_that_is_being_deleted_nothing_is_sent_but_deletions() {
        let fences = fences(Duration::ZERO);
        let team = Fence::new("team/lease", NAMESPACE);
        team.end(BootTime::now());
        fences.add("team", team);
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let (answer, sent) = send(&fences, || (), request(method.clone(), PODS)).await;
            assert_eq!((answer.is_ok(), sent.len() == 1), (method == Method::DELETE, method == Method::DELETE), "{method}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_lost_while_a_write_is_prepared_stops_it() {
        let fences = fences(Duration::ZERO);
        let process = fences.process().cloned().expect("a fence");
        let (answer, sent) = send(&fences, move || process.close(), request(Method::POST, PODS)).await;
        assert!(answer.is_err() && sent.is_empty(), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_over_at_both_ends_before_another_may_take_the_lease() {
        for age in [0, 4, 9] {
            let before = BootTime::now();
            let (answer, sent) = send(&fences(Duration::from_secs(age)), || (), request(Method::POST, PODS)).await;
            let limit = sent[0]
                .strip_prefix(&format!("{PODS}?fieldValidation=Ignore&timeout="))
                .and_then(|rest| rest.strip_suffix("ms"))
                .expect("a limit");
            let limit = Duration::from_millis(limit.parse().expect("milliseconds"));
            let most = ELECTION.lease.saturating_sub(Duration::from_secs(age)).saturating_sub(ON_THE_WAY);
            assert!(limit <= most && limit + BootTime::now().since(before) + Duration::from_millis(1) >= most, "{limit:?} of {most:?}");
            // The answer has begun and does not end: paused time jumps to the deadline.
            let started = Instant::now();
            let mut body = answer.expect("an answer").into_body();
            let error = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.expect("an error").expect_err("late");
            assert!(error.to_string().starts_with("POST /api/v1/namespaces/team/pods: the API server did not answer within"), "{error}");
            assert!(started.elapsed() <= most, "{:?}", started.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_has_a_deadline_and_a_watch_goes_on_for_ever() {
        let open = fences(Duration::ZERO);
        let (answer, sent) = send(&open, || (), request(Method::GET, "/api/v1/pods?&limit=500")).await;
        assert_eq!(sent, ["/api/v1/pods?&limit=500&timeout=30000ms"]);
        let mut body = answer.expect("an answer").into_body();
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(frame.is_some_and(|frame| frame.is_err()), "the answer never ends");

        let watch = "/api/v1/pods?&watch=true&timeoutSeconds=290";
        let (answer, sent) = send(&open, || (), request(Method::GET, watch)).await;
        assert_eq!(sent, [watch], "the API server would end it");
        let mut body = answer.expect("an answer").into_body();
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        assert!(time::timeout(Duration::from_hours(1), frame).await.is_err(), "a watch was cut off");
    }

    #[test]
    fn the_namespace_of_a_request_is_found_wherever_the_api_server_has_it() {
        for (uri, namespace) in [
            ("/api/v1/namespaces/team/pods/namespaces", Some("team")),
            ("/apis/lcl.dev/v1alpha1/namespaces/team/lcltrainingjobs/job/status?force=true", Some("team")),
            ("/api/v1/namespaces", None),
            ("/api/v1/pods", None),
            ("/apis/lcl.dev/v1alpha1/lcltrainingjobs", None),
            ("/version", None),
        ] {
            assert_eq!(namespace_of(&uri.parse().expect("a URI")), namespace, "{uri}");
        }
    }
}
