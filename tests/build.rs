//! Writes copies of the server's read view, and of the table of what clients keep of it, with one mistake each, for the tests that
//! show that mistakes are seen.
//!
//! Charter: takes `server/src/view.rs` and `server/src/tracking.rs`, replaces a few words, and leaves the result where
//! `interleaved.rs` includes it. Where the words are not found any more, it says so in a constant, and the test fails with the
//! mistake's name.

use std::path::Path;
use std::{env, fs};

/// Name of the module, and what is replaced by what.
type Mistake = (&'static str, &'static [(&'static str, &'static str)]);

/// In the view.
const OF_THE_VIEW: [Mistake; 3] = [
    // The end of a new lease is written before its generation.
    (
        "end_first",
        &[("lease.until.store(0, Ordering::Release)", "lease.until.store(until, Ordering::Release)")],
    ),
    // The generation is read before the end.
    (
        "generation_first",
        &[
            (
                "let until = lease.until.load(Ordering::Acquire);",
                "let generation = lease.generation.load(Ordering::Acquire);",
            ),
            (
                "let valid = lease.generation.load(Ordering::Acquire) == line.generation;",
                "let until = lease.until.load(Ordering::Acquire); let valid = generation == line.generation;",
            ),
        ],
    ),
    // The end is read in no order with the generation.
    ("unordered_end", &[("lease.until.load(Ordering::Acquire)", "lease.until.load(Ordering::Relaxed)")]),
];

/// In the table.
const OF_THE_TABLE: [Mistake; 2] = [
    // Who has read a key is looked for before its line is gone.
    (
        "table_first",
        &[(
            "view.apply(effect, evicted);
                if used() {
                    self.end_keys(keys, pushes);
                }",
            "self.end_keys(keys, pushes); view.apply(effect, evicted);",
        )],
    ),
    // The line is looked for before the table is locked.
    (
        "looked_before",
        &[(
            "let mut shard = self.shard(key).lock();
        let Some(until) = view.shows(key, value, now) else { return false };",
            "let Some(until) = view.shows(key, value, now) else { return false };
        let mut shard = self.shard(key).lock();",
        )],
    ),
];

/// Copies of a file with these mistakes. Where its own tests begin, the copies end.
fn copies(path: &Path, tests: &str, mistakes: &[Mistake]) -> String {
    println!("cargo:rerun-if-changed={}", path.display());
    let text = fs::read_to_string(path).expect("the server is there");
    let text = text.split(tests).next().unwrap_or_default();
    // Included files cannot have a charter, and what lies beside the file is in no mistake.
    let left_out = ["//!", "#[path =", "mod told;", "pub use told::"];
    let code: Vec<&str> =
        text.lines().filter(|line| !left_out.iter().any(|begins| line.starts_with(begins))).collect();
    let code = code.join("\n");
    let mut modules = String::new();
    for (name, words) in mistakes {
        let found = words.iter().all(|(right, _)| code.matches(right).count() == 1);
        let wrong = words.iter().fold(code.clone(), |code, (right, wrong)| code.replace(right, wrong));
        modules += &format!(
            "/// A copy with a mistake.\npub mod {name} {{\n/// Whether the mistake could be made.\npub const MADE: bool = {found};\n{wrong}\n}}\n"
        );
    }
    modules
}

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo says where we are");
    let server = Path::new(&root).join("../server/src");
    println!("cargo:rerun-if-changed=build.rs");
    let mut modules = copies(&server.join("view.rs"), "#[cfg(test)]\nmod tests {", &OF_THE_VIEW);
    modules += &copies(&server.join("tracking.rs"), "#[cfg(test)]\n#[path", &OF_THE_TABLE);
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    fs::write(Path::new(&out).join("mistaken.rs"), modules).expect("it can be written");
}
