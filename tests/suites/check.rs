//! `quorate-server check`: what it says of a directory that is sound, in use, damaged, or none.

use std::fs;
use std::path::Path;
use std::process::Command;

use quorate_tests::damages::{files, spoil_last};
use quorate_tests::process::{Client, Cluster, Ran, Scratch, binary, cli, poll, run};

fn check(dir: &Path, more: &[&str]) -> Ran {
    run(Command::new(binary()).arg("check").arg(dir).args(more), "")
}

#[test]
fn a_directory_says_what_it_is_and_whether_it_is_sound() {
    let mut cluster = Cluster::start(1);
    let data = cluster.data_dir(1);
    let mut client = cluster.client(1);
    assert_eq!(client.ask("SET a-certain-key a-certain-value"), "OK");

    // A node that runs is looked at, and goes on.
    let ran = check(&data, &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.starts_with("in use by process "), "{}", ran.out);
    assert_eq!(client.ask("SET a-certain-key another-value"), "OK");
    drop(client);
    cluster.stop(1);

    let ran = check(&data, &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    for words in ["node 1, identity ", ", boot 1\n", "group 0: ", "segment 1: open at ", "no damage"] {
        assert!(ran.out.contains(words), "'{words}' is missing: {}", ran.out);
    }
    let line = ran.out.lines().find(|line| line.contains("segment 1: ")).expect("it is there");
    assert!(line.ends_with(" bytes alive, 0 dead"), "{line}");

    // One of the first entries of some group is the client's.
    let explained: String =
        (1..=4).map(|index| check(&data, &["--explain", &index.to_string()]).out).collect();
    assert!(explained.contains("a-certain-key") && explained.contains("commands"), "{explained}");
    let ran = check(&data, &["--explain", "1", "--group", "0"]);
    let entries = |out: &str| out.lines().filter(|line| line.starts_with("entry 1 of group ")).count();
    assert!(entries(&ran.out) == 1 && ran.out.contains("of group 0: term"), "{}", ran.out);
    let ran = check(&data, &["--explain", "123456789"]);
    assert!(ran.out.contains("no segment holds an entry 123456789"), "{}", ran.out);
}

#[test]
fn a_bad_copy_of_a_twin_is_told_and_is_no_damage() {
    let mut cluster = Cluster::start(1);
    let data = cluster.data_dir(1);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    cluster.stop(1);
    assert!(!check(&data, &[]).out.contains("copies"));
    for (file, at) in [("meta", 10), ("hardstate", (64 << 10) + 10)] {
        let mut bytes = fs::read(data.join(file)).expect("it is there");
        bytes[at] ^= 1;
        fs::write(data.join(file), bytes).expect("it is ours");
        let ran = check(&data, &[]);
        let line = format!("{file}: one of its two copies cannot be read; nothing is lost by it");
        assert!(ran.code == Some(0) && ran.out.contains(&line), "{}{}", ran.out, ran.err);
        assert!(ran.out.ends_with("no damage\n"), "{}", ran.out);
    }
}

#[test]
fn damage_is_named_and_nothing_is_written() {
    let mut cluster = Cluster::start(1);
    let data = cluster.data_dir(1);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    cluster.stop(1);
    let path = data.join("journal/00000000000000000001.seg");
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[20] ^= 1;
    fs::write(&path, &bytes).expect("it is ours");
    for _ in 0..2 {
        let ran = check(&data, &[]);
        assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
        let damage = "DAMAGE: journal/00000000000000000001.seg is damaged at offset 0";
        assert!(ran.out.contains(damage) && ran.out.contains(": lost, incarnation 0"), "{}", ran.out);
        let last = ran.out.lines().last().unwrap_or_default();
        assert!(last.starts_with("LOST: 17 of 17 ") && last.contains("no other node has it"), "{last}");
    }
    assert!(fs::read(&path).expect("it is there") == bytes, "it is left as it was found");
    for file in ["meta", "hardstate"] {
        fs::write(data.join(file), [0; 9]).expect("it is ours");
    }
    let ran = check(&data, &[]);
    assert!(ran.code == Some(1) && ran.err.contains("meta is damaged at offset 0"), "{}", ran.err);
    assert!(ran.err.contains("remove it from the cluster's members"), "it says what to do: {}", ran.err);
}

/// A start repairs the files and writes down which groups are lost; from then on nothing is damaged, and all is not well.
#[test]
fn what_an_earlier_start_has_lost_is_told_until_it_is_replaced() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    (1..=3).for_each(|id| cluster.kill(id));
    spoil_last(&cluster.data_dir(3), |bytes, _| bytes[..1024].fill(0));
    let line = "17 of 17 groups have lost what this node acknowledged of them (0, 1, 2, ";
    for start in 1..=2 {
        cluster.spawn(3);
        poll("the loss is told", || (cluster.log(3).matches(line).count() == start).then_some(()));
        let status = poll("it answers", || Client::try_new(cluster.address(3))?.try_ask("STATUS"));
        assert!(status.contains("\nlost: 0 1 2 "), "{status}");
        let shown =
            run(Command::new(cli()).arg("--server").arg(cluster.address(3).to_string()).arg("status"), "");
        let row = shown.out.lines().find(|line| line.starts_with("3 ")).unwrap_or_default().to_owned();
        assert!(row.ends_with(" lost groups"), "{shown:?}");
        cluster.kill(3);
        let ran = check(&cluster.data_dir(3), &[]);
        let last = ran.out.lines().last().unwrap_or_default();
        assert!(ran.code == Some(1) && last.starts_with("LOST: 17 of 17 groups (0, 1, 2, "), "{}", ran.out);
        assert!(last.contains("start it among the other nodes") && !ran.out.contains("no damage"), "{last}");
    }
    (1..=3).for_each(|id| cluster.spawn(id));
    poll("all is replaced", || {
        let status = Client::try_new(cluster.address(3))?.try_ask("STATUS")?;
        (status.contains("\nlost: (empty)") && status.matches("digest").count() == 17).then_some(())
    });
    cluster.stop(3);
    let ran = check(&cluster.data_dir(3), &[]);
    assert!(ran.code == Some(0) && ran.out.ends_with("no damage\n"), "{}", ran.out);
}

#[test]
fn damage_in_a_snapshot_is_placed() {
    let mut cluster = Cluster::start(1);
    let mut client = cluster.client(1);
    assert_eq!(client.ask("SET k v"), "OK");
    assert_eq!(client.ask("SNAPSHOT"), "OK");
    drop(client);
    cluster.stop(1);
    let data = cluster.data_dir(1);
    let path = files(&data.join("snapshots"), ".snap").pop().expect("there are some");
    let whole = fs::read(&path).expect("it is there");
    // Header, rows and footer are a chunk each.
    let mut offsets = Vec::new();
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("it is ours");
        let ran = check(&data, &[]);
        let name = path.strip_prefix(&data).expect("it lies there").display().to_string();
        let line = ran.out.lines().find(|line| line.starts_with("DAMAGE: ")).unwrap_or_default();
        let words = format!("{name} is damaged at offset ");
        let offset = line.split(&words).nth(1).and_then(|rest| rest.split(':').next());
        let offset: usize = offset.and_then(|offset| offset.parse().ok()).expect("it is a number");
        assert!(offset <= at && ran.out.contains(&format!("not sound at offset {offset}")), "{}", ran.out);
        offsets.push(offset);
    }
    assert!(offsets[0] == 0 && offsets.is_sorted() && offsets[2] > whole.len() / 2, "{offsets:?}");
}

#[test]
fn what_is_no_data_directory_is_said_so() {
    let scratch = Scratch::new();
    let ran = check(&scratch.path().join("nowhere"), &[]);
    assert!(ran.code == Some(1) && ran.err.contains("there is no such directory"), "{}", ran.err);
    fs::create_dir_all(scratch.path()).expect("it can be made");
    let ran = check(scratch.path(), &[]);
    assert!(ran.code == Some(1) && ran.err.contains("no node has founded it"), "{}", ran.err);
}
