//! `polity bench sweep`: training steps over a range, as JSON and as a plot.
//!
//! Not here: one point (`bench.rs`), the chart (`train`).

use polity_chart::{LineChart, Series};
use polity_compute::{Isa, Recompute};
use polity_train::settings::Precision;
use serde::Serialize;

use super::{Matmul, Spread, Subject, forward_flop, matmul, time_steps};
use crate::args::{BenchSweepArgs, Global, NamedShape, Over};
use crate::error::{CommandError, CommandResult};
use crate::machine::{Hardware, peak_memory_bytes};
use crate::output::json_to_stdout;
use crate::ui::{Ui, short};

#[derive(Serialize)]
struct Report {
    program: &'static str,
    version: &'static str,
    commit: Option<&'static str>,
    hardware: Hardware,
    stage: &'static str,
    over: &'static str,
    points: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    precision: &'static str,
    value: usize,
    model: &'static str,
    parameters: usize,
    rows: usize,
    length: usize,
    threads: usize,
    seconds_per_step: Spread,
    tokens_per_s: f64,
    gflops: f64,
    matmul: Matmul,
    share_of_matmul: f64,
    /// Of the process so far.
    peak_memory_bytes: Option<u64>,
}

/// One point's place.
#[derive(Clone, Copy)]
struct At {
    value: usize,
    shape: NamedShape,
    rows: usize,
    length: usize,
    threads: usize,
}

pub(super) fn run(args: &BenchSweepArgs, global: &Global, ui: &Ui) -> CommandResult {
    let places = places(args, global)?;
    let precisions = match args.precisions.as_slice() {
        [] if Isa::detect() >= Isa::Avx512Bf16 => vec![Precision::F32, Precision::Bf16],
        [] => vec![Precision::F32],
        asked => asked.to_vec(),
    };
    let mut points: Vec<Point> = Vec::new();
    for &precision in &precisions {
        for &at in &places {
            let point = measure(at, precision, args.steps, ui)?;
            ui.note(&format!(
                "{} {}, {} rows of {}, {} threads, {}: {} tokens/s",
                over_name(args.over),
                at.value,
                at.rows,
                at.length,
                at.threads,
                point.precision,
                short(point.tokens_per_s)
            ));
            points.push(point);
        }
    }
    let report = Report {
        program: "polity",
        version: polity_train::run::CODE_VERSION,
        commit: polity_train::run::CODE_COMMIT,
        hardware: Hardware::detect(global.threads()),
        stage: "sft",
        over: over_name(args.over),
        points,
    };
    if let Some(file) = &args.plot {
        let svg = chart(args, &report.points).to_svg();
        let svg =
            svg.ok_or_else(|| CommandError::failed("nothing was measured, so there is nothing to draw"))?;
        polity_rows::atomic_write(file, |out| std::io::Write::write_all(out, svg.as_bytes()))
            .map_err(|error| CommandError::failed(format!("cannot write {}: {error}", file.display())))?;
        ui.note(&format!("drawn in {}", file.display()));
    }
    json_to_stdout(&report)
}

fn over_name(over: Over) -> &'static str {
    match over {
        Over::Length => "length",
        Over::Rows => "rows",
        Over::Threads => "threads",
        Over::Shape => "shape",
    }
}

fn places(args: &BenchSweepArgs, global: &Global) -> CommandResult<Vec<At>> {
    let threads = global.threads();
    let at = At { value: 0, shape: args.shape, rows: args.rows, length: args.length, threads };
    let values = |usual: Vec<usize>| if args.values.is_empty() { usual } else { args.values.clone() };
    let places = match args.over {
        Over::Length => values(vec![128, 256, 512, 1024, 2048, 4096])
            .into_iter()
            .map(|value| At { value, length: value, rows: (args.tokens / value).max(1), ..at })
            .collect::<Vec<_>>(),
        Over::Rows => values(vec![1, 2, 4, 8, 16, 32])
            .into_iter()
            .map(|value| At { value, rows: value, ..at })
            .collect(),
        Over::Threads => values((1..=threads).collect())
            .into_iter()
            .map(|value| At { value, threads: value, ..at })
            .collect(),
        Over::Shape => {
            if !args.values.is_empty() {
                return Err(CommandError::bad_input(
                    "--values with --over shape: every named shape is measured",
                )
                .hint("leave --values out"));
            }
            [NamedShape::Tiny, NamedShape::Smol135m]
                .into_iter()
                .map(|shape| At { value: 0, shape, ..at })
                .collect()
        }
    };
    if let Some(short) = places.iter().find(|at| at.length < 2) {
        return Err(CommandError::bad_input(format!(
            "--values has {}, expected lengths of at least 2: a row needs a token to predict",
            short.length
        )));
    }
    Ok(places)
}

fn measure(at: At, precision: Precision, steps: usize, ui: &Ui) -> CommandResult<Point> {
    let mut subject = Subject::random(at.shape, at.length, at.threads, ui)?;
    subject.multiply_in(precision);
    let parameters = subject.decoder.layout.parameter_count();
    let rows = subject.rows("bench sweep", at.rows, at.length)?;
    let before = matmul(&subject.cpu);
    let seconds = time_steps(&subject, &rows, Recompute::None, steps, ui);
    let matmul = before.faster(matmul(&subject.cpu));
    let gflop = 3.0 * forward_flop(&subject.decoder.config, &rows, at.rows * (at.length - 1)) / 1e9;
    Ok(Point {
        precision: Precision::from(subject.cpu.precision()).name(),
        value: if at.value == 0 { parameters } else { at.value },
        model: at.shape.name(),
        parameters,
        rows: at.rows,
        length: at.length,
        threads: at.threads,
        seconds_per_step: seconds,
        tokens_per_s: (at.rows * at.length) as f64 / seconds.median,
        gflops: gflop / seconds.median,
        matmul,
        share_of_matmul: gflop / seconds.median / matmul.gflops,
        peak_memory_bytes: peak_memory_bytes(),
    })
}

fn chart(args: &BenchSweepArgs, points: &[Point]) -> LineChart {
    let mut series: Vec<Series> = Vec::new();
    for point in points {
        let (x, y) = (point.value as f64, point.tokens_per_s);
        match series.iter_mut().find(|series| series.name == point.precision) {
            Some(series) => series.points.push(x, y),
            None => {
                series.push(Series {
                    name: point.precision.into(),
                    points: [(x, y)].into_iter().collect(),
                    dots: true,
                });
            }
        }
    }
    let x_label = match args.over {
        Over::Length => "tokens of a row",
        Over::Rows => "rows of a step",
        Over::Threads => "threads",
        Over::Shape => "parameters",
    };
    let model = if args.over == Over::Shape { "" } else { args.shape.name() };
    LineChart {
        title: format!("training {model}"),
        unit: "tokens/s".into(),
        x_label: x_label.into(),
        series,
        marks: Vec::new(),
        from_zero: true,
    }
}
