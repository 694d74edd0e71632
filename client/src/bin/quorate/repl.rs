//! `quorate` without a command: one line after the other, from a terminal or a file.
//!
//! All lines share a connection, so a lock without an owner lives until the end, and what was fetched can be settled.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use bytes::{Bytes, BytesMut};
use quorate_protocol::command::TABLE;
use quorate_protocol::resp::RequestDecoder;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use tokio::runtime::Runtime;

use crate::cluster::Cluster;
use crate::pass::send;
use crate::show::Screen;
use crate::trouble::Trouble;

/// Lines that the history keeps.
const HISTORY: usize = 1000;

/// Completes verbs, and shows how a command goes on.
struct Verbs;

impl Completer for Verbs {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Self::Candidate>)> {
        Ok((0, completions(&line[..at])))
    }
}

impl Hinter for Verbs {
    type Hint = String;

    fn hint(&self, line: &str, at: usize, _: &Context<'_>) -> Option<String> {
        if at < line.len() { None } else { hint(line) }
    }
}

impl Highlighter for Verbs {}
impl Validator for Verbs {}
impl Helper for Verbs {}

/// The verbs that begin so; also behind HELP.
fn completions(start: &str) -> Vec<String> {
    let (before, word) = match start.rsplit_once(' ') {
        Some((verb, word)) if verb.trim().eq_ignore_ascii_case("help") => ("HELP ", word),
        Some(_) => return Vec::new(),
        None => ("", start),
    };
    let word = word.to_ascii_uppercase();
    let fits = TABLE.iter().filter(|spec| spec.name.starts_with(&word));
    fits.map(|spec| format!("{before}{} ", spec.name)).collect()
}

/// What is still missing behind a verb: the rest of its syntax.
fn hint(line: &str) -> Option<String> {
    let verb = line.strip_suffix(' ')?;
    let spec = TABLE.iter().find(|spec| spec.name.eq_ignore_ascii_case(verb))?;
    spec.syntax.strip_prefix(spec.name).map(|rest| rest.trim_start().to_owned())
}

/// Obeys line after line.
pub(crate) fn run(runtime: &Runtime, cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    if std::io::stdin().is_terminal() {
        talk(runtime, cluster, screen)
    } else {
        read(runtime, cluster, screen)
    }
}

/// From a file or a pipe: every line is obeyed; the exit code is that of the first one that failed.
fn read(runtime: &Runtime, cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    let mut code = None;
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line.map_err(|error| Trouble::usage(format!("standard input cannot be read: {error}")))?;
        if let Err(trouble) = obey(runtime, cluster, screen, &line) {
            code = code.or(Some(screen.complain(&trouble)));
        }
    }
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

fn talk(runtime: &Runtime, cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    let broken = |error: ReadlineError| Trouble::internal(format!("the terminal cannot be used: {error}"));
    let config = Config::builder()
        .max_history_size(HISTORY)
        .and_then(|config| config.history_ignore_space(true).history_ignore_dups(true));
    let config = config.map_err(broken)?.auto_add_history(true).build();
    let mut editor: Editor<Verbs, DefaultHistory> = Editor::with_config(config).map_err(broken)?;
    editor.set_helper(Some(Verbs));
    let history = std::env::home_dir().map(|home| home.join(".quorate_history"));
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    screen.note("HELP lists the commands, HELP LOCK explains one, Tab completes, Ctrl-D ends");
    let result = loop {
        match editor.readline("quorate> ") {
            Ok(line) if ["quit", "exit"].contains(&line.trim().to_ascii_lowercase().as_str()) => break Ok(()),
            Ok(line) => {
                if let Err(trouble) = obey(runtime, cluster, screen, line.as_bytes()) {
                    screen.complain(&trouble);
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(broken(error)),
        }
    };
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        screen.note(&format!("the history could not be kept in {}: {error}", path.display()));
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn obey(runtime: &Runtime, cluster: &mut Cluster, screen: &Screen, line: &[u8]) -> Result<(), Trouble> {
    let words = words(line)?;
    if words.is_empty() {
        return Ok(());
    }
    runtime.block_on(send(cluster, screen, words)).map(|_| ())
}

/// The words of a line, with the quotes that the inline protocol knows.
fn words(line: &[u8]) -> Result<Vec<Bytes>, Trouble> {
    let mut buffer = BytesMut::from(line);
    buffer.extend_from_slice(b"\n");
    let request = RequestDecoder::default().decode(&mut buffer);
    let request = request.map_err(|error| Trouble::usage(format!("the line cannot be read: {error}")))?;
    Ok(request.map(|request| request.args).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_completed_and_their_syntax_is_shown() {
        assert_eq!(completions("unl"), ["UNLINK ", "UNLOCK "]);
        assert_eq!(completions("help PUB"), ["HELP PUB "]);
        assert!(completions("GET k").is_empty());
        assert_eq!(hint("get ").as_deref(), Some("key"));
        assert_eq!(hint("get k "), None);
        assert_eq!(hint("get"), None);
    }

    #[test]
    fn lines_are_cut_into_words_as_by_a_node() {
        assert_eq!(words(b"set k 'a b'").expect("words"), ["set", "k", "a b"]);
        assert!(words(b"  ").expect("words").is_empty());
        assert!(words(b"set 'k").is_err());
    }
}
