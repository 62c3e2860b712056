//! Prints parts of a world as JSON lines, and judges or compares responses read from stdin: enough to train on the
//! world from another program.
//!
//! `world prompts|demonstrations N|corpus N SEED`, `world gold|vote SEED < rows`.
use std::io::{BufRead, Write};

use polity_world::{Panel, Response, Split, World};
use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let what = args.first().map(String::as_str).unwrap_or("prompts");
    let n: usize = args.get(1).map_or(10, |n| n.parse().expect("N is a number"));
    let seed: u64 = args.get(2).map_or(1, |n| n.parse().expect("SEED is a number"));
    let world = World::new(seed);
    let panel = Panel::standard(seed);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut say = |value: Value| writeln!(out, "{value}").expect("stdout takes it");
    match what {
        "prompts" => {
            for split in Split::ALL {
                world.prompts(split, n).iter().for_each(|p| {
                    say(json!({"prompt": p, "ideal": world.ideal(p)}));
                });
            }
        }
        "demonstrations" => world.demonstrations(n).iter().for_each(|d| say(json!({"prompt": d.prompt, "response": d.response, "flaws": d.flaws, "gold": world.gold(&d.prompt, &d.response)}))),
        "corpus" => world.corpus(n).iter().for_each(|text| say(json!({"text": text}))),
        _ => {
            for (i, line) in std::io::stdin().lock().lines().enumerate() {
                let row: Value = serde_json::from_str(&line.expect("utf-8")).expect("JSON");
                let p = world.find(row["id"].as_str().expect("id")).expect("a known prompt");
                let get = |text: &str, ended: &str| Response { text: row[text].as_str().expect("text"), ended: row[ended].as_bool().unwrap_or(true) };
                let get = |text: &'static str, ended: &'static str| { let r = get(text, ended); (r.text.to_string(), r.ended) };
                if what == "gold" {
                    let (t, ended) = get("response", "ended");
                    say(json!(world.gold(p, Response { text: &t, ended })));
                } else {
                    let (l, le) = get("left", "left_ended");
                    let (r, re) = get("right", "right_ended");
                    let votes: Vec<f64> = (0..panel.annotators.len()).map(|a| panel.vote(a, &i.to_string(), p, Response { text: &l, ended: le }, Response { text: &r, ended: re }).left_share()).collect();
                    say(json!(votes));
                }
            }
        }
    }
}
