//! A network of namespaces, one for each node, in which ways can be cut one by one.
//!
//! Charter: makes the namespaces, a bridge between them, and cuts and heals ways. The test itself stays outside, on the
//! bridge: its clients reach every node all the time. All is taken down when the value is dropped; what a killed test
//! has left is taken down by the next one.
//!
//! Subtlety: a way is cut by teaching its beginning a false hardware address of its end. So packets vanish without a
//! word, in this direction only, as they do in a broken network; nobody is told, neither the sender nor TCP.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::Place;

/// An address that nobody has.
const NOBODY: &str = "02:00:00:00:00:01";

/// See the top of the file.
#[derive(Debug)]
pub struct Network {
    tag: String,
    /// The second and third number of all addresses.
    subnet: (u8, u8),
    nodes: u8,
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split(' ')).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("ip: {error}")),
    }
}

impl Network {
    /// A network for so many nodes, all of whom reach each other.
    ///
    /// # Errors
    /// When this machine, or this user, cannot have namespaces: with the reason.
    pub fn new(nodes: u8) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let part = |number: u32| u8::try_from(number % 250).expect("it is below 256");
        let this = Self { tag: format!("{pid}-{n}"), subnet: (part(pid / 250), part(pid + n)), nodes };
        // From here on dropping it takes down what there is.
        let bridge = this.bridge();
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {}/24 dev {bridge}", this.address(254)))?;
        ip(&format!("link set {bridge} up"))?;
        for node in 1..=nodes {
            let (space, outside) = (this.space(node), format!("qv{}{node}", this.tag));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {outside} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {outside} master {bridge} up"))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", this.address(node)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(this)
    }

    fn bridge(&self) -> String {
        format!("qb{}", self.tag)
    }

    fn space(&self, node: u8) -> String {
        format!("quorate-{}-{node}", self.tag)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet.0, self.subnet.1, host)
    }

    /// Where the nodes run.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let place = |node| Place { ip: IpAddr::V4(self.address(node)), namespace: Some(self.space(node)) };
        (1..=self.nodes).map(place).collect()
    }

    /// Nothing that one node sends reaches the other any more.
    ///
    /// # Panics
    /// When the network is not what it was.
    pub fn cut(&self, from: usize, to: usize) {
        let (space, to) = self.way(from, to);
        let line = format!("-n {space} neigh replace {to} lladdr {NOBODY} nud permanent dev eth0");
        ip(&line).expect("the namespace is there");
    }

    /// What one node sends reaches the other again.
    pub fn heal(&self, from: usize, to: usize) {
        let (space, to) = self.way(from, to);
        // There may be nothing to heal.
        let _ = ip(&format!("-n {space} neigh del {to} dev eth0"));
    }

    fn way(&self, from: usize, to: usize) -> (String, Ipv4Addr) {
        let number = |node: usize| u8::try_from(node).expect("few nodes");
        (self.space(number(from)), self.address(number(to)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 1..=self.nodes {
            let _ = ip(&format!("netns del {}", self.space(node)));
        }
        let _ = ip(&format!("link del {}", self.bridge()));
    }
}

/// Takes down what tests have left that are no more.
fn sweep() {
    let gone = |tag: &str| {
        let pid = tag.split('-').next().filter(|pid| pid.parse::<u32>().is_ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    let names = |place: &str, prefix: &str| -> Vec<String> {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.strip_prefix(prefix).is_some_and(gone)).collect()
    };
    for space in names("/run/netns", "quorate-") {
        let _ = ip(&format!("netns del {space}"));
    }
    for bridge in names("/sys/class/net", "qb") {
        let _ = ip(&format!("link del {bridge}"));
    }
}
