//! Who talks to the nodes: a person with nc, on a connection of lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// A person with nc: lines out, text back.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, if somebody listens.
    #[must_use]
    pub fn try_new(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream: BufReader::new(stream) })
    }

    /// Sends a line without waiting for its answer.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn say(&mut self, line: &str) {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).expect("the connection stands");
    }

    /// One line of an answer.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn line(&mut self) -> String {
        self.try_line().expect("an answer comes")
    }

    /// One line of an answer, if the connection stands.
    pub fn try_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Sends a line and returns the first line of its answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.line()
    }

    /// Sends a line and returns the first line of its answer, if the connection stands.
    pub fn try_first(&mut self, line: &str) -> Option<String> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).ok()?;
        self.try_line()
    }

    /// Sends no more; answers still come.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn hush(&mut self) {
        self.stream.get_mut().shutdown(std::net::Shutdown::Write).expect("the connection stands");
    }

    /// Sends a line whose answer may take several, and returns them all. The end is marked by an ECHO.
    #[must_use]
    pub fn try_ask(&mut self, line: &str) -> Option<String> {
        self.stream.get_mut().write_all(format!("{line}\nECHO end-of-answer\n").as_bytes()).ok()?;
        let mut text = String::new();
        loop {
            match self.try_line()?.as_str() {
                "end-of-answer" => return Some(text),
                line => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }

    /// See `try_ask`.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn ask_all(&mut self, line: &str) -> String {
        self.try_ask(line).expect("an answer comes")
    }

    /// Whether the other side has closed the connection (waits for it).
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }
}
