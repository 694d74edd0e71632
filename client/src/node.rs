//! One node, asked for its own view: without a client session, so it answers also while the cluster has no leader.
//!
//! Subtlety: nothing is sent again here and nothing reconnects. A question that fails has failed; the caller asks
//! another node.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocol::command::{Command, find, parse};
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::reply::Reply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Error;
use crate::cluster::{self, Member, PartitionInfo, SnapshotInfo, Status};
use crate::values;

/// A connection to one node, for what that node knows by itself; [`crate::Client`] is for everything else.
#[derive(Debug)]
pub struct Node {
    stream: TcpStream,
    buffer: BytesMut,
    correlation: u64,
    patience: Duration,
}

impl Node {
    /// Connects to a node's client port. `patience` bounds the connecting, and later each answer.
    ///
    /// # Errors
    /// `Unreachable` when nobody listens there or answers in time.
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, Error> {
        let failed = |why: String| Error::Unreachable(format!("{address}: {why}"));
        let stream = timeout(patience, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| failed("no connection in time".to_owned()))?;
        let stream = stream.map_err(|error| failed(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        Ok(Self { stream, buffer: BytesMut::new(), correlation: 0, patience })
    }

    /// Sends a command that the node answers by itself (STATUS, INFO, HELP, …), the verb first.
    ///
    /// # Errors
    /// `Refused` with the answer's error; `Usage` for a command that the cluster decides; `Unreachable` when the
    /// connection ended, `Timeout` when no answer came. Connect again after those two.
    pub async fn call<W: Into<Bytes>>(&mut self, words: impl IntoIterator<Item = W>) -> Result<Reply, Error> {
        let mut args: Vec<Bytes> = words.into_iter().map(Into::into).collect();
        if let Ok(Command::Op(_)) = parse(&args) {
            return Err(Error::Usage("the cluster decides this command; use a Client".to_owned()));
        }
        let mut opcode = 0;
        if let Some(spec) = args.first().and_then(|verb| find(verb)) {
            opcode = spec.number;
            args.remove(0);
        }
        self.correlation += 1;
        let correlation = self.correlation;
        let mut out = Vec::new();
        Frame::Request(RequestFrame { correlation, opcode, client: None, after: None, args })
            .encode(&mut out);
        let answer = timeout(self.patience, self.exchange(&out)).await.map_err(|_| Error::Timeout)?;
        match answer.map_err(|error| Error::Unreachable(error.to_string()))? {
            Reply::Error(failure) => Err(Error::Refused(*failure)),
            reply => Ok(reply),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Reply> {
        self.stream.write_all(request).await?;
        loop {
            match frame::decode(&mut self.buffer).map_err(std::io::Error::other)? {
                Some(Frame::Reply { correlation, reply }) if correlation == self.correlation => {
                    return Ok(reply);
                }
                Some(Frame::Goodbye { reply }) => return Ok(reply),
                Some(_) => {}
                None if self.stream.read_buf(&mut self.buffer).await? > 0 => {}
                None => return Err(std::io::Error::other("the node has closed the connection")),
            }
        }
    }

    /// STATUS: see [`crate::Client::status`].
    ///
    /// # Errors
    /// As `call`.
    pub async fn status(&mut self) -> Result<Status, Error> {
        cluster::status(self.call(["STATUS"]).await?)
    }

    /// MEMBERS: see [`crate::Client::members`].
    ///
    /// # Errors
    /// As `call`.
    pub async fn members(&mut self) -> Result<Vec<Member>, Error> {
        cluster::members(self.call(["MEMBERS"]).await?)
    }

    /// PARTITIONS: see [`crate::Client::partitions`].
    ///
    /// # Errors
    /// As `call`.
    pub async fn partitions(&mut self) -> Result<Vec<PartitionInfo>, Error> {
        cluster::partitions(self.call(["PARTITIONS"]).await?)
    }

    /// How long each answer may take from now on: writing snapshots of much data takes its time.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// SNAPSHOT: has the node write a snapshot of every group that it holds, with all that was acknowledged before.
    ///
    /// # Errors
    /// As `call`.
    pub async fn snapshot(&mut self) -> Result<(), Error> {
        values::done(self.call(["SNAPSHOT"]).await?)
    }

    /// SNAPSHOT LIST: the newest snapshot of every group that the node holds.
    ///
    /// # Errors
    /// As `call`.
    pub async fn snapshots(&mut self) -> Result<Vec<SnapshotInfo>, Error> {
        cluster::snapshots(self.call(["SNAPSHOT", "LIST"]).await?)
    }

    /// SNAPSHOT READ: bytes of a group's snapshot from an offset on; empty at its end, none when the node has it no more.
    ///
    /// # Errors
    /// As `call`.
    pub async fn read_snapshot(
        &mut self,
        group: u64,
        index: u64,
        offset: u64,
    ) -> Result<Option<Bytes>, Error> {
        let place = [group, index, offset].map(|number| number.to_string());
        let words = ["SNAPSHOT", "READ"].map(str::to_owned).into_iter().chain(place);
        values::maybe(self.call(words).await?, values::bytes)
    }
}
