//! Fifty annotators at once over loopback: nothing lost, nothing served beyond what is wanted.
//!
//! This is the short form; `cargo run --release -p polity-web --example load` runs for a minute, on PostgreSQL too, and reports percentiles.

use std::collections::HashMap;
use std::collections::HashSet;
use std::net::SocketAddr;

use polity_store::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::site::{Client, Site, plain};

const ANNOTATORS: usize = 50;
const COMPARISONS: usize = 60;
const OVERLAP: i64 = 3;

/// One request on a connection of its own; the body.
async fn request(
    address: SocketAddr,
    client: &Client,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncookie: polity={}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        client.cookies["polity"],
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_annotators_at_once() {
    let site = Site::new(plain(OVERLAP)).await;
    let names = site.material(COMPARISONS, OVERLAP).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(polity_web::serve(listener, site.app.clone(), axum::Router::new(), async {
        let _ = stopped.await;
    }));
    let mut people = Vec::new();
    for n in 0..ANNOTATORS {
        people.push(site.client(&format!("annotator {n}"), &[Role::Annotator]).await);
    }
    let work = people.into_iter().map(|client| {
        tokio::spawn(async move {
            let mut confirmed = Vec::new();
            loop {
                let (status, page) = request(address, &client, "GET", "/compare", "").await;
                assert_eq!(status, 200, "{page}");
                let Some(given) = page.split("name=\"assignment\" value=\"").nth(1) else {
                    return (client.id, confirmed);
                };
                let given = given.split('"').next().unwrap().to_owned();
                let body = format!("csrf={}&assignment={given}&answer=left1", client.csrf);
                // A browser may send twice; that is one vote.
                for _ in 0..2 {
                    let (status, page) = request(address, &client, "POST", "/compare", &body).await;
                    assert_eq!(status, 303, "{page}");
                }
                confirmed.push(given.parse::<i64>().unwrap());
            }
        })
    });
    let mut confirmed = HashMap::new();
    for task in work.collect::<Vec<_>>() {
        let (id, votes) = task.await.unwrap();
        confirmed.insert(id, votes);
    }
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();

    assert_eq!(confirmed.values().map(Vec::len).sum::<usize>(), COMPARISONS * OVERLAP as usize);
    for name in &names {
        let votes = site.store.votes_on(name).await.unwrap();
        let by: HashSet<&str> = votes.iter().map(|vote| vote.annotator_id.as_str()).collect();
        assert_eq!((votes.len(), by.len()), (OVERLAP as usize, OVERLAP as usize), "{name}");
        for vote in &votes {
            assert!(confirmed[&vote.annotator_id].contains(&vote.assignment_id.unwrap()));
        }
    }
    // Stopping seals the votes into the ledger.
    assert_eq!(site.store.ledger_head().await.unwrap().kind, "votes");
}
