//! A panel's work, page by page: compare, undo, calibrate, change the rubric, review, freeze.

use axum::http::StatusCode;
use polity_store::{
    Answer as Vote, CalibrationItem, ExportOptions, ExportRow, Kind, LabelRule, Part, Policy, Role,
};
use serde_json::{Value, json};

use crate::site::{Client, HOUR_MS, Site, plain};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_until_nothing_is_left_says_so() {
    let site = Site::new(plain(2)).await;
    site.material(4, 2).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    for n in 0..4 {
        let page = ann.get("/compare").await;
        assert!(page.text.contains(&format!("<strong>{n}</strong> judgement")), "{n}: {}", page.text);
        assert!(!page.text.contains("m1") && !page.text.contains("m2"), "models are not named");
        let given = page.field("assignment").unwrap();
        assert_eq!(ann.get("/compare").await.field("assignment").unwrap(), given, "a reload shows the same");
        site.wait(9000);
        let fields = [
            ("assignment", given.as_str()),
            ("answer", "left2"),
            ("axes.helpful", "left1"),
            ("axes.honest", "tie"),
            ("reason", " because \r\n it is "),
            ("work_ms", "8500"),
        ];
        assert_eq!(ann.post("/compare", &fields).await.to(), "/compare");
    }
    let votes = site.store.votes_by(&ann.id, 10).await.unwrap();
    assert_eq!(votes.len(), 4);
    assert_eq!(votes[0].reason, "because \n it is");
    assert_eq!((votes[0].work_ms, votes[0].shown_ms), (Some(8500), Some(site.now() - 9000)));
    assert_eq!(votes[0].axes.len(), 2);
    let done = ann.get("/compare").await;
    assert!(
        done.text.contains("Nothing for you right now") && done.text.contains("4 comparisons still want"),
        "{}",
        done.text
    );

    // Somebody else takes them; one is left in their hands, and the page says until when.
    let mut ben = site.client("ben", &[Role::Annotator]).await;
    let given = ben.get("/compare").await.field("assignment").unwrap();
    assert!(ann.get("/compare").await.text.contains("in 30 min"));
    ben.post("/compare", &[("assignment", &given), ("answer", "tie")]).await;
    for _ in 0..3 {
        let given = ben.get("/compare").await.field("assignment").unwrap();
        ben.post("/compare", &[("assignment", &given), ("answer", "both_bad")]).await;
    }
    assert!(ann.get("/compare").await.text.contains("All done"));
}

/// A time on task longer than the page was open is not believed, nor a negative one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_answers_are_refused_or_dropped() {
    let site = Site::new(plain(2)).await;
    site.material(2, 2).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let given = ann.get("/compare").await.field("assignment").unwrap();
    let given = given.as_str();
    for (fields, message) in [
        (vec![("assignment", given)], "`answer` is missing"),
        (vec![("assignment", given), ("answer", "up")], "`answer` is `&quot;up&quot;`; expected left3"),
        (
            vec![("assignment", given), ("answer", "tie"), ("axes.nice", "tie")],
            "An axis is `nice`; expected helpful, harmless, honest",
        ),
        (vec![("assignment", given), ("answer", "tie"), ("axes.helpful", "flag")], "expected a judgement"),
        (vec![("assignment", "1; DROP TABLE vote"), ("answer", "tie")], "expected a whole number"),
    ] {
        let answer = ann.post("/compare", &fields).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{fields:?}");
        assert!(answer.text.contains(message), "{fields:?}: {}", answer.text);
    }
    assert_eq!(
        ann.post("/compare", &[("assignment", "99"), ("answer", "tie")]).await.status,
        StatusCode::NOT_FOUND
    );
    ann.post("/compare", &[("assignment", given), ("answer", "tie"), ("work_ms", "99999999")]).await;
    assert_eq!(site.store.votes_by(&ann.id, 1).await.unwrap()[0].work_ms, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undo_supersedes_and_shows_the_same_again() {
    let site = Site::new(plain(2)).await;
    site.material(3, 2).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    ann.get("/compare").await;
    assert_eq!(ann.post("/compare/undo", &[]).await.status, StatusCode::CONFLICT, "nothing to undo yet");
    let first = ann.get("/compare").await.field("assignment").unwrap();
    ann.post("/compare", &[("assignment", &first), ("answer", "left3")]).await;
    let page = ann.get("/compare").await;
    assert!(page.text.contains("Undo last vote"));
    assert_eq!(ann.post("/compare/undo", &[]).await.to(), "/compare");
    assert_eq!(ann.get("/compare").await.field("assignment").unwrap(), first);
    ann.post("/compare", &[("assignment", &first), ("answer", "right1")]).await;
    let votes = site.store.votes_by(&ann.id, 10).await.unwrap();
    let said: Vec<String> = votes.iter().map(|vote| vote.overall.to_string()).collect();
    assert_eq!(said, ["right1", "withdrawn", "left3"]);
    assert_eq!(site.store.judgements_made(&ann.id).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calibration_comes_first_and_tells_afterwards() {
    let policy = Policy { calibration_first: 2, calibration_pass: 1.0, ..plain(2) };
    let site = Site::new(policy).await;
    let names = site.material(5, 2).await;
    let mut admin = site.client("admin", &[Role::Admin]).await;
    for name in &names[..2] {
        admin.get(&format!("/review/{name}")).await;
        let texts = site.store.comparison(name).await.unwrap();
        let good = if texts.a.model == "m1" { "left2" } else { "right2" };
        let fields = [("comparison", name.as_str()), ("expected", good), ("explanation", "The *good* one.")];
        assert_eq!(admin.post("/calibration", &fields).await.to(), "/calibration");
    }
    assert!(admin.get("/calibration").await.text.contains("0 of 0"));

    let mut ann = site.client("ann", &[Role::Annotator]).await;
    for n in 1..=2 {
        let page = ann.get("/compare").await;
        assert!(page.text.contains(&format!("Calibration {n} of 2.")), "{}", page.text);
        let given = page.field("assignment").unwrap();
        // The good answer stands on the side where its text comes first.
        let good_left = page.text.find("Good answer").unwrap() < page.text.find("Bad answer").unwrap();
        let right = n == 1;
        let answer = if good_left == right { "left1" } else { "right1" };
        let voted = ann.post("/compare", &[("assignment", &given), ("answer", answer)]).await;
        assert_eq!(voted.to(), format!("/compare/feedback/{given}"));
        let told = ann.get(voted.to()).await;
        let verdict = if right { "As expected" } else { "Not as expected" };
        assert!(told.text.contains(&format!("<h1>{verdict}</h1>")), "{}", told.text);
        assert!(told.text.contains("The <em>good</em> one."), "{}", told.text);
        let expected = if good_left { "A clearly better" } else { "B clearly better" };
        assert!(told.text.contains(&format!("<dd>{expected}</dd>")), "{}", told.text);
    }
    assert_eq!(
        ann.post("/compare/undo", &[]).await.status,
        StatusCode::CONFLICT,
        "the answer has been shown"
    );
    let refused = ann.get("/compare").await;
    assert!(
        refused.text.contains("Not qualified yet") && refused.text.contains("you answered 1 as expected"),
        "{}",
        refused.text
    );

    // A rubric that asks for it begins a new round, for everybody.
    admin.get("/rubric/edit").await;
    let saved = admin
        .post(
            "/rubric",
            &[
                ("title", "Which is better?"),
                ("instructions", "New words."),
                ("axes.0.key", "helpful"),
                ("axes.0.label", "Helpful"),
                ("axes.0.help", "Does what was asked."),
                ("axes.1.key", ""),
                ("examples.0.prompt", "2+2?"),
                ("examples.0.left", "4"),
                ("examples.0.right", "5"),
                ("examples.0.answer", "A much better."),
                ("note", "one axis"),
                ("recalibrate", "on"),
            ],
        )
        .await;
    assert_eq!(saved.to(), "/rubric", "{}", saved.text);
    let rubric = site.store.current_rubric().await.unwrap();
    assert_eq!((rubric.version, rubric.rubric.axes.len(), rubric.rubric.examples.len()), (2, 1, 1));
    let page = ann.get("/compare").await;
    assert!(
        page.text.contains("Calibration 1 of 2.") && page.text.contains("The rubric changed"),
        "{}",
        page.text
    );
    assert!(page.text.contains("New words.") && page.text.contains("Rubric, version 2"));
    assert!(ann.get("/rubric/1").await.text.contains("Rubric, version 1"));
    assert_eq!(ann.get("/rubric/3").await.status, StatusCode::NOT_FOUND);
    let again = admin.post("/rubric", &[("title", "Which is better?"), ("instructions", "New words.")]).await;
    assert_eq!(again.to(), "/rubric", "without axes it is another one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn review_decides_and_a_dataset_follows() {
    let site = Site::new(plain(2)).await;
    let names = site.material(6, 2).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let mut ben = site.client("ben", &[Role::Annotator]).await;
    // Both always say left; the sides differ, so they disagree here and there. Ben flags nothing.
    for client in [&mut ann, &mut ben] {
        for _ in 0..6 {
            let given = client.get("/compare").await.field("assignment").unwrap();
            site.wait(3000);
            client
                .post("/compare", &[("assignment", &given), ("answer", "left2"), ("work_ms", "2500")])
                .await;
        }
    }
    let queue = site.store.review_queue(10).await.unwrap();
    assert!(!queue.is_empty() && queue.len() <= 6);
    let mut rev = site.client("rev", &[Role::Reviewer]).await;
    let page = rev.get("/review").await;
    let name = &queue[0].comparison_id;
    assert!(page.text.contains(&format!("/review/{name}")));
    let blind = rev.get(&format!("/review/{name}")).await;
    assert!(blind.text.contains("ann") && !blind.text.contains("m1"), "votes are shown, models are not");
    let decided = rev.post(&format!("/review/{name}"), &[("answer", "left3"), ("reason", "clear")]).await;
    assert_eq!(decided.to(), format!("/review/{name}"));
    let open = rev.get(&format!("/review/{name}")).await;
    assert!(
        open.text.contains("m1") && open.text.contains("A much better") && open.text.contains("clear"),
        "{}",
        open.text
    );
    rev.post(&format!("/review/{name}"), &[("answer", "tie"), ("reason", "on second thought")]).await;
    let decisions = site.store.adjudications(name).await.unwrap();
    assert_eq!(
        decisions.iter().map(|d| d.answer).collect::<Vec<_>>(),
        ["left3".parse::<Vote>().unwrap(), Vote::Tie]
    );
    assert!(!rev.get("/review").await.text.contains(name.as_str()), "decided is out of the queue");

    site.wait(60_000);
    let panel = rev.get("/panel").await;
    assert!(panel.text.contains("12</strong> votes that stand"), "{}", panel.text);
    assert!(panel.text.contains("<svg") && panel.text.contains("/formulas#krippendorff-alpha"));
    let person = rev.get(&format!("/panel/{}", ann.id)).await;
    assert!(
        person.text.contains("<strong>") && person.text.contains("6 of 6"),
        "always left: {}",
        person.text
    );
    assert_eq!(rev.get("/panel/nobody").await.status, StatusCode::NOT_FOUND);
    assert!(rev.get("/formulas").await.text.contains("id=\"krippendorff-alpha\""));

    rev.post(&format!("/review/{}/queue", names[0]), &[("queued", "no")]).await;
    assert_eq!(site.store.comparison(&names[0]).await.unwrap().comparison.state, "closed");

    let mut admin = site.client("admin", &[Role::Admin]).await;
    admin.get("/datasets").await;
    let frozen = admin.post("/datasets", &[("name", "first"), ("labels", "soft"), ("votes_min", "2")]).await;
    assert_eq!(frozen.to(), "/datasets", "{}", frozen.text);
    assert!(admin.get("/datasets").await.text.contains("first"));
    let mut program = site.program(&admin.id).await;
    let rows = program.call("GET", "/api/v1/datasets/first/rows", json!({})).await.json();
    assert!(!rows["rows"].as_array().unwrap().is_empty());
    exports_are_what_was_frozen(&site, &mut admin).await;
    let ledger = admin.get("/ledger").await;
    for kind in ["freeze", "export", "adjudication", "rubric", "role"] {
        assert!(ledger.text.contains(&format!("<td>{kind}</td>")), "{kind}: {}", ledger.text);
    }
}

/// The file that comes down is the dataset's rows, and its hash is in the ledger.
async fn exports_are_what_was_frozen(site: &Site, admin: &mut Client) {
    let dataset = site.store.dataset("first").await.unwrap();
    let asked = [("name", "first"), ("part", "train"), ("labels", "own"), ("weights", "on")];
    let file = admin.post("/datasets/export", &asked).await;
    assert_eq!(file.status, StatusCode::OK, "{}", file.text);
    assert_eq!(file.headers["content-disposition"], "attachment; filename=\"first-train.jsonl\"");
    let options = ExportOptions { labels: LabelRule::Soft, margins: false, weights: true };
    let rows = site.store.dataset_rows("first", 0, 1000).await.unwrap();
    let expected: Vec<_> = rows
        .into_iter()
        .filter(|row| row.row.part == Part::Train)
        .map(|row| json!(ExportRow::of(row, &options).unwrap()))
        .collect();
    let sent: Vec<Value> = file.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((sent.len() as i64, &sent), (dataset.train_rows, &expected));
    assert!(sent.iter().all(|row| row["label"].is_number() && row["weight"].is_number()), "{sent:?}");
    let event = site.store.ledger_head().await.unwrap();
    let body: Value = serde_json::from_str(&event.body).unwrap();
    assert_eq!((event.kind.as_str(), &body["hash"]), ("export", &json!(dataset.hash)));
    assert_eq!(body["files"][0]["blake3"], blake3::hash(file.text.as_bytes()).to_hex().as_str());

    for (what, asked) in [
        ("reliability model", [("name", "first"), ("part", "train"), ("labels", "model")]),
        ("expected train", [("name", "first"), ("part", "all"), ("labels", "own")]),
        ("", [("name", "nowhere"), ("part", "train"), ("labels", "own")]),
    ] {
        let refused = admin.post("/datasets/export", &asked).await;
        assert!(refused.status.is_client_error() && refused.text.contains(what), "{}", refused.text);
    }
    assert_eq!(site.store.ledger_head().await.unwrap().seq, event.seq, "what is refused is no event");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_names_its_model_is_held_back_for_review() {
    let site = Site::new(plain(1)).await;
    let pair = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let names = site
        .pairs(
            &[
                pair("Who are you?", "I am ChatGPT, made by OpenAI.", "I am a program."),
                pair("2+2?", "4", "5"),
            ],
            1,
        )
        .await;
    let state = async |name: &str| site.store.comparison(name).await.unwrap().comparison.state;
    assert_eq!((state(&names[0]).await.as_str(), state(&names[1]).await.as_str()), ("held", "fresh"));
    let mut rev = site.client("rev", &[Role::Reviewer]).await;
    assert!(rev.get("/review").await.text.contains(names[0].as_str()));
    let page = rev.get(&format!("/review/{}", names[0])).await;
    assert!(page.text.contains("may name its model: it says “chatgpt”"), "{}", page.text);
    rev.post(&format!("/review/{}/queue", names[0]), &[("queued", "yes")]).await;
    assert_eq!(state(&names[0]).await, "open");
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let mut shown = 0;
    while let Some(given) = ann.get("/compare").await.field("assignment") {
        ann.post("/compare", &[("assignment", &given), ("answer", "tie")]).await;
        shown += 1;
    }
    assert_eq!(shown, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ran_out_is_said_to_have() {
    let site = Site::new(plain(1)).await;
    site.material(1, 1).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let mut ben = site.client("ben", &[Role::Annotator]).await;
    let given = ann.get("/compare").await.field("assignment").unwrap();
    assert!(ben.get("/compare").await.text.contains("Nothing for you right now"));
    site.wait(HOUR_MS);
    let taken = ben.get("/compare").await.field("assignment").unwrap();
    assert_eq!(ben.post("/compare", &[("assignment", &taken), ("answer", "tie")]).await.to(), "/compare");
    let late = ann.post("/compare", &[("assignment", &given), ("answer", "tie")]).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.text.contains("take the next one"), "{}", late.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_people_are_kept_and_written_down() {
    let site = Site::new(plain(2)).await;
    let mut admin = site.client("admin", &[Role::Admin]).await;
    let ann = site.client("ann", &[Role::Annotator]).await;
    let page = admin.get("/settings").await;
    let fields: Vec<(&str, String)> = [
        "overlap",
        "lease_ms",
        "random_share",
        "score_pool",
        "calibration_first",
        "calibration_pass",
        "calibration_share",
        "repeat_share",
        "repeat_gap",
        "flags_hold",
        "holdout_looks",
    ]
    .map(|name| {
        (
            name,
            page.text
                .split(&format!("<input name=\"{name}\""))
                .nth(1)
                .unwrap()
                .split("value=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .to_owned(),
        )
    })
    .into();
    let changed: Vec<(&str, &str)> =
        fields.iter().map(|(name, value)| (*name, if *name == "overlap" { "5" } else { value })).collect();
    assert_eq!(admin.post("/settings", &changed).await.to(), "/settings");
    assert_eq!(site.store.project().await.unwrap().policy, Policy { overlap: 5, ..plain(2) });
    let wrong: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (*name, if *name == "random_share" { "2" } else { value }))
        .collect();
    assert_eq!(admin.post("/settings", &wrong).await.status, StatusCode::UNPROCESSABLE_ENTITY);

    let roles = admin
        .post(&format!("/people/{}/roles", ann.id), &[("roles", "annotator"), ("roles", "reviewer")])
        .await;
    assert_eq!(roles.to(), "/people");
    assert_eq!(site.store.account(&ann.id).await.unwrap().roles, [Role::Annotator, Role::Reviewer].into());
    let last = admin.post(&format!("/people/{}/roles", admin.id.clone()), &[("roles", "reviewer")]).await;
    assert_eq!(last.status, StatusCode::CONFLICT, "the last administrator stays one");
    let kinds: Vec<String> =
        site.store.events(1, 100).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert!(
        kinds.iter().filter(|kind| *kind == "policy").count() == 1
            && kinds.iter().filter(|kind| *kind == "role").count() >= 3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_answer_in_between_is_not_announced() {
    let site = Site::new(Policy { calibration_share: 1.0, ..plain(2) }).await;
    let names = site.material(3, 2).await;
    let item = CalibrationItem {
        comparison_id: names[0].clone(),
        expected: Vote::Tie,
        explanation: String::new(),
        active: true,
    };
    site.store.set_calibration(item, "test", site.now()).await.unwrap();
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let page = ann.get("/compare").await;
    let given: i64 = page.field("assignment").unwrap().parse().unwrap();
    assert_eq!(site.store.assignment(&ann.id, given).await.unwrap().kind, Kind::Calibration);
    let lower = page.text.to_lowercase();
    assert!(!lower.contains("calibration") && !lower.contains("known"), "{}", page.text);
}
