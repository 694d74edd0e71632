//! The house's style and its walls, as a test: what a reviewer would otherwise have to remember.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file at the most.
const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

struct Source {
    /// Its path from the workspace, with `/`.
    name: String,
    text: String,
}

impl Source {
    /// What is not in its test module: that may use what tests use.
    fn without_tests(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    fn is_in(&self, room: &str) -> bool {
        self.name.starts_with(room)
    }
}

/// All Rust files of the workspace.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = ["protocol", "engine", "server", "client", "bench-client", "tests"]
        .map(|room| root().join(room))
        .into();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            // Fuzzing has a workspace, and a target directory, of its own.
            let entries =
                fs::read_dir(&path).expect("it can be read").map(|entry| entry.expect("it is there").path());
            waiting.extend(entries.filter(|path| !path.ends_with("target")));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path.strip_prefix(root()).expect("it lies in the workspace");
            let name = name.to_string_lossy().replace('\\', "/");
            found.push(Source { name, text: fs::read_to_string(&path).expect("it is text") });
        }
    }
    assert!(found.len() > 50, "the workspace was found");
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Lines with one of these words, in the files that `looks` chooses, outside comments.
fn lines_with(words: &[&str], looks: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut hits = Vec::new();
    for source in sources().iter().filter(|source| looks(source)) {
        for (number, line) in (1..).zip(source.without_tests().lines()) {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                hits.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    hits
}

fn none(what: &str, hits: &[String]) {
    assert!(hits.is_empty(), "{what}:\n{}", hits.join("\n"));
}

/// This file has the words it looks for.
fn is_not_this(source: &Source) -> bool {
    source.name != "tests/suites/tidy.rs"
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let lines = |source: &Source| source.without_tests().lines().count();
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| lines(source) > LINES_MAX)
        .map(|source| format!("{}: {} lines", source.name, lines(source)))
        .collect();
    none(&format!("files of more than {LINES_MAX} lines"), &long);
    let silent: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//!") && source.text.lines().count() > 3)
        .map(|source| source.name.clone())
        .collect();
    none("files without a charter at their top", &silent);
}

#[test]
fn nothing_is_left_for_later_without_saying_so() {
    let words = ["todo!", "unimplemented!", "FIXME", "XXX", "#[ignore"];
    let hits: Vec<String> = sources()
        .iter()
        .filter(|source| is_not_this(source))
        .flat_map(|source| {
            let lines = source.text.lines().filter(|line| words.iter().any(|word| line.contains(word)));
            lines.map(|line| format!("{}: {}", source.name, line.trim())).collect::<Vec<_>>()
        })
        .collect();
    none("things left undone", &hits);
}

#[test]
fn the_engine_is_pure() {
    let engine = |source: &Source| source.is_in("engine/src/") && !source.name.ends_with("/tests.rs");
    none("the engine knows no world", &lines_with(&["std::", "tokio", "thread_rng", "getrandom"], engine));
    let lib = fs::read_to_string(root().join("engine/src/lib.rs")).expect("it is there");
    assert!(lib.contains("#![no_std]"));
    none("hash order is no order", &lines_with(&["HashMap", "HashSet", "hashbrown"], engine));
}

#[test]
fn subsystems_do_not_know_each_other() {
    let rooms = ["lock", "queue", "store"];
    for room in rooms {
        let inside = |source: &Source| {
            source.is_in(&format!("engine/src/{room}/")) && !source.name.ends_with("/tests.rs")
        };
        let mut others: Vec<String> =
            rooms.iter().filter(|other| **other != room).map(|other| format!("crate::{other}")).collect();
        for stranger in ["consensus", "group", "gateway", "engine::", "journal", "household", "ring"] {
            others.push(format!("crate::{stranger}"));
        }
        others.push("raft".to_owned());
        let words: Vec<&str> = others.iter().map(String::as_str).collect();
        none(&format!("{room} keeps to itself"), &lines_with(&words, inside));
    }
    let raft = |source: &Source| source.is_in("engine/src/") && !source.is_in("engine/src/consensus/");
    none("raft's types stop in consensus", &lines_with(&["raft::"], raft));
    none("protocol knows nobody", &lines_with(&["quorate_"], |source| source.is_in("protocol/src/")));
    none(
        "the client knows the protocol only",
        &lines_with(&["quorate_engine", "quorate_server"], |source| source.is_in("client/src/")),
    );
}

#[test]
fn only_the_driver_steps_and_only_the_clock_reads_time() {
    let server = |source: &Source| source.is_in("server/src/");
    let steps = lines_with(&[".step("], |source| server(source) && source.name != "server/src/driver.rs");
    none("only driver.rs steps the engine", &steps);
    let clocks = ["Instant", "SystemTime", "clock_gettime"];
    let hits = lines_with(&clocks, |source| {
        server(source) && source.name != "server/src/clock.rs"
            || source.is_in("engine/src/")
            || source.is_in("protocol/src/")
    });
    none("only clock.rs reads time", &hits);
}

#[test]
fn unsafe_stands_in_one_file() {
    let hits =
        lines_with(&["unsafe "], |source| is_not_this(source) && source.name != "server/src/journal/mmap.rs");
    none("unsafe code", &hits);
}

#[test]
fn syncing_is_switched_off_in_one_place_that_nothing_shipped_can_reach() {
    let seams = lines_with(&["quorate_no_sync"], is_not_this);
    assert!(
        seams.len() == 1 && seams[0].starts_with("server/src/journal/dir.rs:"),
        "one seam, which tests/power uses: {seams:?}"
    );
    let configurations = [".ci/run", ".cargo/config.toml", "server/Cargo.toml", "Dockerfile", "compose.yaml"];
    for name in configurations {
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        assert!(!text.contains("no_sync"), "{name} switches syncing off");
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let hits: Vec<String> = sources()
        .iter()
        .filter(|source| {
            is_not_this(source) && (source.text.contains("/home/") || source.text.contains("/work/"))
        })
        .map(|source| source.name.clone())
        .collect();
    none("paths of one machine", &hits);
}
