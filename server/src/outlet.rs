//! What the engine has for a client connection, on its way to the connection's task.
//!
//! Invariant: bounded by `limits::OUTPUT_MAX`. A client that lets more pile up is cut, with a reason; it never
//! grows the server's memory.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_protocol::limits::OUTPUT_MAX;
use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::Reply;
use tokio::sync::Notify;

use crate::tracking::{Pushes, Stale};

/// Something to be written to a client.
#[derive(Debug)]
pub enum Out {
    /// An answer to the request of this number.
    Reply(u64, Reply),
    /// A message of a subscription.
    Push(Delivery),
    /// What the client is to drop of what it keeps.
    Stale(Stale),
    /// The last thing: why the connection is closed.
    Close(String),
    /// Others need the memory that the connection holds.
    Cut,
}

#[derive(Debug, Default)]
struct Waiting {
    outs: Vec<Out>,
    bytes: usize,
    cut: bool,
}

/// A connection's outlet.
#[derive(Debug, Default)]
pub struct Outlet {
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl Outlet {
    /// Adds something; wakes nobody yet.
    pub fn add(&self, out: Out) {
        let mut waiting = self.waiting.lock();
        let all = |out: &Out| matches!(out, Out::Stale(Stale::All));
        if all(&out) && waiting.outs.last().is_some_and(all) {
            return;
        }
        waiting.bytes += weight(&out);
        if waiting.bytes > OUTPUT_MAX {
            waiting.cut = true;
            waiting.outs.clear();
        }
        if !waiting.cut {
            waiting.outs.push(out);
        }
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits until there is something.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes what there is; `None` when too much has piled up.
    #[must_use]
    pub fn take(&self) -> Option<Vec<Out>> {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        (!waiting.cut).then(|| std::mem::take(&mut waiting.outs))
    }
}

fn weight(out: &Out) -> usize {
    64 + match out {
        Out::Reply(_, reply) => reply.weight(),
        Out::Push(delivery) => delivery.weight(),
        Out::Stale(Stale::Keys(keys)) => keys.iter().map(|key| 32 + key.len()).sum(),
        Out::Stale(Stale::All) | Out::Cut => 0,
        Out::Close(reason) => reason.len(),
    }
}

/// The outlets of all connections.
#[derive(Debug, Default)]
pub struct Outlets(Mutex<HashMap<u64, Arc<Outlet>>>);

impl Outlets {
    /// Adds a connection.
    pub fn insert(&self, conn: u64, outlet: Arc<Outlet>) {
        self.0.lock().insert(conn, outlet);
    }

    /// Takes a connection out.
    pub fn remove(&self, conn: u64) {
        self.0.lock().remove(&conn);
    }

    /// Adds something for a connection, and notes whom to wake.
    pub fn add(&self, conn: u64, out: Out, touched: &mut Vec<Arc<Outlet>>) {
        let outlets = self.0.lock();
        let Some(outlet) = outlets.get(&conn) else { return };
        outlet.add(out);
        if !touched.last().is_some_and(|last| Arc::ptr_eq(last, outlet)) {
            touched.push(Arc::clone(outlet));
        }
    }

    /// Tells clients what to drop.
    pub fn add_stale(&self, pushes: &mut Pushes, touched: &mut Vec<Arc<Outlet>>) {
        for (conn, stale) in pushes.drain(..) {
            self.add(conn, Out::Stale(stale), touched);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_is_cut_and_holds_nothing() {
        let outlet = Outlet::default();
        let big = || Reply::Bulk(vec![0; OUTPUT_MAX / 2].into());
        outlet.add(Out::Reply(1, big()));
        assert_eq!(outlet.take().map(|outs| outs.len()), Some(1));
        outlet.add(Out::Reply(2, big()));
        outlet.add(Out::Reply(3, big()));
        assert!(outlet.waiting.lock().outs.is_empty(), "nothing is kept for it");
        assert!(outlet.take().is_none());
    }
}
