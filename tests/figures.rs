//! What a node's /metrics says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::process::Cluster;

/// All of it.
///
/// # Panics
/// When the node does not answer.
#[must_use]
pub fn metrics(cluster: &Cluster, node: usize) -> String {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.admin_port(node)));
    let mut stream = TcpStream::connect(address).expect("the admin port is open");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("it takes a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers in text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
    body.to_owned()
}

/// One figure of it.
///
/// # Panics
/// When there is none of this name.
#[must_use]
pub fn figure(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let text = metrics(cluster, node);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}
