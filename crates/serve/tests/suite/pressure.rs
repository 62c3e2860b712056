//! More than there is room for: refusals, clients that leave, memory, the end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::StatusCode;
use futures_util::StreamExt;
use futures_util::future::join_all;
use polity_serve::Limits;
use serde_json::json;

use crate::site::Site;

const LONG: &str = "Once upon a time there was a little girl";

fn long(seed: usize) -> serde_json::Value {
    json!({"model": "stories", "prompt": LONG, "max_tokens": 400, "seed": seed, "stop_token_ids": [], "stream": true})
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} never came");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_queue_there_is_a_429_and_afterwards_room_again() {
    let site = Site::new(Limits { sequences_max: 2, waiting_max: 3, ..Limits::usual() });
    let mut open = Vec::new();
    for seed in 0..5 {
        open.push(site.open("/v1/completions", long(seed)).await);
    }
    let got = site.post("/v1/completions", long(9)).await;
    assert_eq!(got.status, StatusCode::TOO_MANY_REQUESTS, "{}", got.text);
    assert_eq!(got.json()["error"]["code"], "rate_limit_exceeded");
    assert!(got.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    let texts = join_all(open.into_iter().map(|body| to_bytes(body, usize::MAX))).await;
    assert!(
        texts.iter().all(|text| text.as_ref().unwrap().ends_with(b"data: [DONE]\n\n")),
        "all that were taken end whole"
    );
    assert_eq!(site.server.open(), 0);
    site.post("/v1/completions", long(9)).await.pieces();
    assert_eq!(site.model.scheduler().gauges().refused.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_is_not_decoded_for() {
    let site = Site::new(Limits { sequences_max: 1, ..Limits::usual() });
    let gauges = site.model.scheduler().gauges();
    let mut running = site.open("/v1/completions", long(0)).await.into_data_stream();
    let waiting = site.open("/v1/completions", long(1)).await;
    running.next().await.unwrap().unwrap();
    drop(running);
    drop(waiting);
    until("the end of both", || gauges.cancelled.load(Relaxed) == 2).await;
    until("an idle scheduler", || {
        gauges.sequences.load(Relaxed) == 0 && gauges.kv_tokens_used.load(Relaxed) == 0
    })
    .await;
    assert_eq!(site.server.open(), 0);
    site.post("/v1/completions", long(2)).await.pieces();
}

/// Keys and values stay within their limit while much more is asked for than fits at once.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded() {
    let limits = Limits { kv_tokens_max: 1000, ..Limits::usual() };
    let site = Site::new(limits);
    let gauges = site.model.scheduler().gauges();
    let all = join_all((0..12).map(|seed| {
        let mut body = long(seed);
        body["max_tokens"] = json!(100 + 20 * seed);
        body["n"] = json!(1 + seed % 2);
        site.post("/v1/completions", body)
    }));
    let watched = async {
        let mut most = 0;
        loop {
            let (used, reserved) =
                (gauges.kv_tokens_used.load(Relaxed), gauges.kv_tokens_reserved.load(Relaxed));
            assert!(used <= 992 && reserved <= 992, "{used} {reserved}: 31 pages of 32 tokens");
            most = most.max(used);
            if gauges.finished.load(Relaxed) == 12 {
                return most;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (all, most) = futures_util::future::join(all, watched).await;
    all.iter().for_each(|got| drop(got.pieces()));
    assert!(most > 300, "{most}: several ran at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_what_runs_and_aborting_says_that_it_was_cut() {
    let site = Site::new(Limits { sequences_max: 1, ..Limits::usual() });
    let (running, waiting) =
        (site.open("/v1/completions", long(0)).await, site.open("/v1/completions", long(1)).await);
    site.server.close();
    let got = site.post("/v1/completions", long(2)).await;
    assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(got.headers.contains_key("retry-after"));
    for body in [running, waiting] {
        assert!(to_bytes(body, usize::MAX).await.unwrap().ends_with(b"data: [DONE]\n\n"));
    }

    let site = Site::new(Limits { sequences_max: 1, ..Limits::usual() });
    let mut running = site.open("/v1/completions", long(0)).await.into_data_stream();
    running.next().await.unwrap().unwrap();
    site.server.abort();
    let mut last = Vec::new();
    while let Some(bytes) = running.next().await {
        last = bytes.unwrap().to_vec();
    }
    let last = String::from_utf8(last).unwrap();
    assert!(last.contains("\"type\":\"server_error\"") && !last.contains("[DONE]"), "{last}");
}
