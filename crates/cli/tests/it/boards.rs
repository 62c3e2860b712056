//! The dashboards of a real project, through the running server: a run that was trained, its release, the drawing of what it was made from.

use serde_json::Value;

use crate::release::Shop;
use crate::serve::{end, started};
use crate::support::{command, text};

#[test]
fn a_trained_and_released_model_is_on_the_dashboards() {
    let shop = Shop::trained();
    shop.done("release DIR/p/runs/dpo/model --project DIR/p --channel production");
    let token = shop.done("account add Rhea --project DIR/p --role reviewer");
    let project = shop.path("p");
    let (server, _out, said) =
        started(command(["--json", "serve", "--listen", "127.0.0.1:0", "--project"]).arg(&project));
    let address = said["address"].as_str().unwrap();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let get = |path: &str| {
        let request = agent.get(format!("{address}{path}"));
        let mut response =
            request.header("authorization", format!("Bearer {}", token.trim())).call().unwrap();
        let body = response.body_mut().read_to_string().unwrap();
        assert_eq!(response.status(), 200, "{path}: {body}");
        body
    };
    let json = |path: &str| -> Value { serde_json::from_str(&get(path)).unwrap() };

    let run = &json("/api/v1/runs")["runs"][0];
    assert_eq!(
        (run["name"].as_str(), run["state"].as_str(), run["step"].as_u64()),
        (Some("dpo"), Some("ended"), Some(1))
    );
    // The charts and units are the trainer's own.
    let page = get("/runs/dpo");
    assert!(
        page.contains("Direct preference optimisation") && page.contains("Pairs ordered right"),
        "{page}"
    );
    let loss = &json("/api/v1/runs/dpo/curves?metric=loss")["curves"][0];
    // The policy is its own reference at the first step, so the loss is the logarithm of two.
    assert!((loss["points"][0][1].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-6, "{loss}");
    assert_eq!(loss["formula"], "what the step minimised, over all of its rows");

    let verdict = json("/api/v1/verdicts")["verdicts"][0]["id"].as_str().unwrap().to_owned();
    let page = get(&format!("/verdicts/{verdict}"));
    assert!(page.contains("class=\"limit\"") && page.contains(">pass</span>"), "{page}");
    assert!(get("/evaluations").contains("In the ledger since"));
    let card = get("/releases/production-1/card");
    assert!(!card.contains("not the card that was released") && card.contains("model.safetensors"), "{card}");
    // Drawn by the command line's own code, while the server has the store open.
    let drawn = get("/releases/production-1/lineage.svg");
    shop.done("lineage production-1 --project DIR/p --svg DIR/lineage.svg");
    assert_eq!(drawn, std::fs::read_to_string(shop.path("lineage.svg")).unwrap());
    assert!(drawn.contains("votes"), "{}", text(&project));
    end(server, "-INT");
}
