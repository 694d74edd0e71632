//! Client libraries, as their users have them: redis-py of four major versions, with and without hiredis' parser, hiredis itself, and
//! redis-rs. They connect without a warning, and read, write, pipeline and run transactions through every node.
//!
//! Subtlety: what is fetched or compiled for this is kept under `target/clients`, so a second run takes seconds.

use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_tests::others::{is_there, kept};
use quorate_tests::process::{Cluster, run};

fn ports(cluster: &Cluster) -> Vec<String> {
    (1..=3).map(|node| cluster.port(node).to_string()).collect()
}

fn suite(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("suites").join(file)
}

/// Where redis-py of this kind lies, if it can be had.
fn redis_py(name: &str, wanted: &str) -> Option<PathBuf> {
    let place = kept(name);
    if !place.join("redis").is_dir() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&place).arg(wanted);
        is_there(&format!("{wanted} (python3 -m pip)"), &mut pip).then_some(())?;
    }
    Some(place)
}

/// What each version says about itself is checked, so that it is no other one that is tested.
fn with_redis_py(name: &str, wanted: &str, version: &str, hiredis: &str) {
    let Some(place) = redis_py(name, wanted) else { return };
    let cluster = Cluster::start(3);
    let python = || {
        let mut python = Command::new("python3");
        python.args(["-W", "error"]).env("PYTHONPATH", &place);
        python
    };
    let ask = "import redis; from redis.utils import HIREDIS_AVAILABLE as h; print(redis.__version__, h)";
    let is = run(python().args(["-c", ask]), "");
    assert!(is.out.starts_with(version) && is.out.trim().ends_with(hiredis), "{is:?}");
    let ran = run(python().arg(suite("redis_py.py")).args(ports(&cluster)), "");
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(0), "", "all is well\n"), "{name}");
}

#[test]
fn redis_py_5() {
    with_redis_py("redis-py-5", "redis>=5,<6", "5.", "False");
}

#[test]
fn redis_py_6() {
    with_redis_py("redis-py-6", "redis>=6,<7", "6.", "False");
}

#[test]
fn redis_py_7() {
    with_redis_py("redis-py-7", "redis>=7,<8", "7.", "False");
}

#[test]
fn redis_py_8() {
    with_redis_py("redis-py-8", "redis>=8,<9", "8.", "False");
}

#[test]
fn redis_py_8_with_hiredis() {
    with_redis_py("redis-py-8-hiredis", "redis[hiredis]>=8,<9", "8.", "True");
}

#[test]
fn hiredis() {
    let program = kept("hiredis").join("talk");
    let mut compile = Command::new("cc");
    compile.args(["-Wall", "-Werror", "-o"]).arg(&program).arg(suite("hiredis.c")).arg("-lhiredis");
    if !is_there("cc or hiredis (packages gcc and libhiredis-dev)", &mut compile) {
        return;
    }
    let cluster = Cluster::start(3);
    let ran = run(Command::new(&program).args(ports(&cluster)), "");
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(0), "", "all is well\n"));
}

/// `redis://` with RESP2, which is the default, and RESP3.
fn urls(cluster: &Cluster) -> Vec<String> {
    let url = |port: String| ["", "?protocol=resp3"].map(|tail| format!("redis://127.0.0.1:{port}/{tail}"));
    ports(cluster).into_iter().flat_map(url).collect()
}

#[test]
fn redis_rs() {
    use redis::TypedCommands;
    let cluster = Cluster::start(3);
    for (n, url) in (0_i64..).zip(urls(&cluster)) {
        let client = redis::Client::open(url.as_str()).expect("that is a URL");
        let mut talk = client.get_connection().expect("it connects");
        assert_eq!(redis::cmd("PING").query::<String>(&mut talk).expect("PONG"), "PONG");
        talk.set("rs:key", n).expect("OK");
        for _ in 0..3 {
            assert_eq!(
                talk.get_int("rs:key").expect("a number"),
                Some(isize::try_from(n).expect("it is small"))
            );
        }
        assert_eq!(talk.get("rs:nothing").expect("nil"), None);
        let mut pipe = redis::pipe();
        for at in 0..100 {
            pipe.set(format!("rs:{at}"), at).ignore();
        }
        for at in 0..100 {
            pipe.get(format!("rs:{at}"));
        }
        let values: Vec<i64> = pipe.query(&mut talk).expect("all are answered");
        assert_eq!(values, (0..100).collect::<Vec<_>>());
        let mut multi = redis::pipe();
        multi.atomic().set("{rs}a", n).ignore().incr("{rs}a", 5).get("{rs}a");
        assert_eq!(multi.query::<(i64, i64)>(&mut talk).expect("EXEC is answered"), (n + 5, n + 5));
        let mut torn = redis::pipe();
        torn.atomic().set("rs:1", 1).set("rs:2", 2).set("rs:3", 3);
        // redis-rs shows no words of a refused EXEC, whatever they are.
        torn.query::<()>(&mut talk).expect_err("these lie in several partitions");
        assert_eq!(
            talk.get_int("rs:key").expect("the connection stands"),
            Some(isize::try_from(n).expect("small"))
        );
    }
}

#[tokio::test]
async fn redis_rs_asynchronous() {
    use redis::AsyncTypedCommands;
    let cluster = Cluster::start(3);
    for (n, url) in (0_i64..).zip(urls(&cluster)) {
        let client = redis::Client::open(url.as_str()).expect("that is a URL");
        let talk = client.get_multiplexed_async_connection().await.expect("it connects");
        let tasks: Vec<_> = (0..20_i64)
            .map(|task| {
                let mut talk = talk.clone();
                tokio::spawn(async move {
                    let key = format!("rsa:{task}");
                    talk.set(&key, n * 100 + task).await.expect("OK");
                    let seen = talk.get(&key).await.expect("a value");
                    assert_eq!(seen, Some((n * 100 + task).to_string()));
                    let mut multi = redis::pipe();
                    multi.atomic().incr(&key, 1).del(&key).get(&key);
                    let answers = multi.query_async::<(i64, i64, Option<i64>)>(&mut talk).await;
                    assert_eq!(answers.expect("EXEC is answered"), (n * 100 + task + 1, 1, None));
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("all is well");
        }
    }
}
