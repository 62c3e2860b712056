//! How fast a file of preference rows is read:
//! `cargo run --release -p polity-rows --example read_speed -- FILE`.

use std::error::Error;
use std::time::Instant;

use polity_rows::{FromRow, PreferenceRow, Row, open};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("expected one argument: a file of preference rows")?;
    let bytes = std::fs::metadata(&path)?.len();

    let start = Instant::now();
    let rows: Vec<Row> = open(&path)?.collect::<Result<_, _>>()?;
    let parse_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (count, mut flagged) = (rows.len(), 0);
    for row in rows {
        let row = PreferenceRow::from_row(row, path.as_ref())?;
        flagged += usize::from(!row.info.flags.is_empty());
    }
    let typed_s = start.elapsed().as_secs_f64();

    println!(
        "{count} rows ({flagged} flagged), {:.1} MB: parsed in {parse_s:.3} s, typed in {typed_s:.3} s, {:.0} rows/s",
        bytes as f64 / 1e6,
        count as f64 / (parse_s + typed_s)
    );
    Ok(())
}
