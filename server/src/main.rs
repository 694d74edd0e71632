//! The binary: reads the settings, sets up the log, becomes a node or a cluster for trying things out.

use std::io::Write;
use std::process::ExitCode;

use quorate_server::config::{CommandLine, Config, LogFormat, Plan, one_line};
use quorate_server::journal::stop_on_unreadable_pages;
use quorate_server::{check, dev, node, restore};
use tracing_subscriber::filter::LevelFilter;

/// The exit code of wrong settings; everything else that fails is 1.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let line = match CommandLine::read() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => return fail(&one_line(&error), USAGE),
        Err(help) => {
            // Nobody may be reading.
            let _ = write!(std::io::stdout(), "{help}");
            return ExitCode::SUCCESS;
        }
    };
    let plan = match line.plan() {
        Ok(plan) => plan,
        Err(text) => return fail(&text, USAGE),
    };
    let result = match plan {
        Plan::Dev(flags) => dev::run(&flags),
        Plan::Check(flags) => match check::run(&flags) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(text) => Err(text),
        },
        Plan::Restore(flags) => restore::run(&flags),
        Plan::Node(config) if config.print_config => {
            print_config(&config);
            Ok(())
        }
        Plan::Node(config) => {
            log_to_stderr(&config);
            end_on_panic();
            stop_on_unreadable_pages().map_err(|error| error.to_string()).and_then(|()| node::run(&config))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(&text, 1),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    // Nobody may be reading.
    let _ = writeln!(std::io::stderr(), "quorate-server: {text}");
    ExitCode::from(code)
}

/// Shows the settings as a file that could be given to --config.
fn print_config(config: &Config) {
    let mut out = std::io::stdout().lock();
    for (name, value) in config.settings() {
        // Nobody may be reading.
        let _ = match value.parse::<u64>() {
            Ok(number) => writeln!(out, "{name} = {number}"),
            Err(_) => writeln!(out, "{name} = {}", toml::Value::String(value)),
        };
    }
}

fn log_to_stderr(config: &Config) {
    let level = config.log_level.parse().unwrap_or(LevelFilter::INFO);
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// A broken invariant anywhere ends the node: half a node must not go on serving. The last line says what broke.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!("this node stops: {}", info.to_string().replace('\n', " "));
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            report(info);
        }
        std::process::exit(70);
    }));
}
