//! The admin port: health for orchestrators and figures for those who watch, over HTTP. Nothing of the data path is here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_protocol::id::NodeId;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::answers::Desk;
use crate::driver::Shared;
use crate::gate::Gate;
use crate::metrics;

/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last.
const VISIT: Duration = Duration::from_secs(10);

/// Serves up to `max` at a time, until the process ends. `own` is this node, and which life of its id it is in.
pub async fn serve(
    listener: TcpListener,
    max: usize,
    own: (NodeId, u32),
    shared: Arc<Shared>,
    desk: Arc<Desk>,
) {
    let mut gate = Gate::new("admin", max);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(HEAD / 50).await;
            continue;
        };
        let Some(permit) = gate.enter() else { continue };
        let (shared, desk) = (Arc::clone(&shared), Arc::clone(&desk));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, own, &shared, &desk);
                async { Ok::<_, Infallible>(response) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
            // A client that breaks off is no concern of ours.
            let _ = timeout(VISIT, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(permit);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    (node, life): (NodeId, u32),
    shared: &Shared,
    desk: &Desk,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "alive\n"),
        "/readyz" if shared.book.is_disowned(node, life) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "this node has been removed from its cluster; stop it\n")
        }
        // A node that knows the members has applied the system group's log, so it has heard of a leader.
        "/readyz" if shared.book.is_informed() => text(StatusCode::OK, "ready\n"),
        "/metrics" => {
            let mut response = Response::new(Full::new(Bytes::from(metrics::text(shared, desk))));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            response
        }
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the system group has not been heard of yet\n"),
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}
