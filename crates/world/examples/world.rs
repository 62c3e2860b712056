//! Prints parts of a world as JSON lines, and judges or compares responses read from stdin: enough to train on the world
//! from another program.
//!
//! ```text
//! world describe SEED
//! world prompts SEED N          N of each split, with the ideal answer
//! world demonstrations SEED N   with their flaws and gold utility
//! world corpus SEED N
//! world gold SEED               < {"id", "response", "ended"}
//! world vote SEED               < {"id", "left", "right", "left_ended", "right_ended"}
//! ```
//!
//! `vote` prints the left response's share by every annotator of the standard panel; a row's number is its comparison.

use std::error::Error;
use std::io::{BufRead, Write};

use polity_world::{Panel, Prompt, Response, Split, World};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verb = args.first().map_or("describe", String::as_str);
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |n| n.parse::<u64>());
    let (seed, n) = (number(1, 1)?, number(2, 10)? as usize);
    let world = World::new(seed);
    let rows: Vec<Value> = match verb {
        "describe" => {
            print!("{}", world.describe());
            return Ok(());
        }
        "prompts" => Split::ALL
            .into_iter()
            .flat_map(|split| world.prompts(split, n))
            .map(|prompt| json!({"ideal": world.ideal(&prompt), "prompt": prompt}))
            .collect(),
        "demonstrations" => world
            .demonstrations(n)
            .into_iter()
            .map(|demo| {
                let gold = world.gold(&demo.prompt, &demo.response);
                json!({"prompt": demo.prompt, "response": demo.response, "flaws": demo.flaws, "gold": gold})
            })
            .collect(),
        "corpus" => world.corpus(n).into_iter().map(|text| json!({"text": text})).collect(),
        "gold" | "vote" => {
            let panel = Panel::standard(seed);
            let mut out = Vec::new();
            for (i, line) in std::io::stdin().lock().lines().enumerate() {
                let row: Value = serde_json::from_str(&line?)?;
                let prompt = prompt_of(&world, &row)?;
                out.push(if verb == "gold" {
                    json!(world.gold(prompt, response(&row, "response", "ended")?))
                } else {
                    let left = response(&row, "left", "left_ended")?;
                    let right = response(&row, "right", "right_ended")?;
                    let shares: Vec<f64> = (0..panel.annotators.len())
                        .map(|a| panel.vote(a, &i.to_string(), prompt, left, right).left_share())
                        .collect();
                    json!(shares)
                });
            }
            out
        }
        other => return Err(format!("unknown verb {other}").into()),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for row in rows {
        writeln!(out, "{row}")?;
    }
    Ok(())
}

fn prompt_of<'a>(world: &'a World, row: &Value) -> Result<&'a Prompt, Box<dyn Error>> {
    let id = row["id"].as_str().ok_or("a row needs an id")?;
    world.find(id).ok_or_else(|| format!("no prompt {id}").into())
}

fn response<'a>(row: &'a Value, text: &str, ended: &str) -> Result<Response<'a>, Box<dyn Error>> {
    let said = row[text].as_str().ok_or_else(|| format!("a row needs {text}"))?;
    Ok(Response { text: said, ended: row[ended].as_bool().unwrap_or(true) })
}
