//! Any command, sent as it stands.

use std::process::ExitCode;

use bytes::Bytes;
use quorate_client::Subscribe;
use quorate_protocol::command::{Command, parse};
use quorate_protocol::op::{Op, Sub};
use quorate_protocol::reply::Reply;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::show::Screen;
use crate::trouble::{INTERRUPTED, Trouble};

/// A single command of a program that ends behind it.
pub(crate) async fn once(
    cluster: &mut Cluster,
    screen: &Screen,
    words: Vec<Bytes>,
) -> Result<ExitCode, Trouble> {
    match parse(&words) {
        Ok(Command::Op(Op::Lock(lock))) if lock.owner.is_none() => Err(Trouble::usage(
            "a lock without an owner's name ends with the connection, and that with this program; add OWNER id, or \
             hold it while a program runs: quorate lock NAME -- PROGRAM",
        )),
        Ok(Command::Op(Op::Fetch(_))) => {
            let code = send(cluster, screen, words).await;
            screen.note("what was fetched comes back as this program ends; ACK works where it was fetched, in `quorate`");
            code
        }
        _ => send(cluster, screen, words).await,
    }
}

/// Sends a command and shows its answer.
pub(crate) async fn send(
    cluster: &mut Cluster,
    screen: &Screen,
    words: Vec<Bytes>,
) -> Result<ExitCode, Trouble> {
    let reply = match parse(&words) {
        Ok(Command::Op(Op::Sub(sub))) => return follow(cluster, screen, sub).await,
        Ok(Command::Op(_)) => cluster.client().await?.call(words).await?,
        // What cannot be understood here, a node refuses with a sentence, or understands because it is newer.
        _ => cluster.ask_node(words).await?,
    };
    screen.reply(&reply);
    Ok(ExitCode::SUCCESS)
}

/// SUB: shows messages as they come, until Ctrl-C.
async fn follow(cluster: &mut Cluster, screen: &Screen, sub: Sub) -> Result<ExitCode, Trouble> {
    let mut how = Subscribe::default().prefetch(sub.prefetch);
    if let Some(lease) = sub.lease {
        how = how.lease(Duration::from_millis(lease));
    }
    let client = cluster.client().await?;
    let mut subscription = client.subscribe(sub.topic, how).await?;
    loop {
        let message = tokio::select! {
            message = subscription.next() => message?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let values = [
            Reply::text("message"),
            Reply::Bulk(message.topic.clone()),
            Reply::int(message.id),
            Reply::Int(message.attempt.into()),
            Reply::Bulk(message.body.clone()),
        ];
        if screen.is_json() {
            screen.value(&crate::show::json(&Reply::Array(values.into())));
        } else {
            let texts = [values[1].clone(), values[4].clone()].map(|value| match value {
                Reply::Bulk(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                _ => String::new(),
            });
            screen.line(&format!("message {} {} {} {}", texts[0], message.id, message.attempt, texts[1]));
        }
    }
    subscription.close().await?;
    Ok(ExitCode::from(INTERRUPTED))
}
