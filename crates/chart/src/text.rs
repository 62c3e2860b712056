//! Round numbers, numbers for people, and text that is safe.

/// Round numbers inside `[low, high]`, about `count` of them, 1, 2 or 5 times a power of ten apart. At least two.
pub fn nice_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count.max(1) as f64;
    let power = 10.0_f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw * 0.85).unwrap_or(raw);
    let ticks_at = |step: f64| {
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        // `+ 0.0` turns -0 into 0.
        (0..=(last - first).max(-1.0) as i64).map(|i| (first + i as f64) * step + 0.0).collect::<Vec<_>>()
    };
    let ticks = ticks_at(step);
    if ticks.len() >= 2 { ticks } else { ticks_at(step / 5.0) }
}

/// Labels with as many decimals as the distance between ticks needs, in thousands or millions if they are large.
pub(crate) fn tick_labels(ticks: &[f64]) -> Vec<String> {
    let largest = ticks.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let step = if ticks.len() > 1 { (ticks[1] - ticks[0]).abs() } else { largest };
    if largest > 0.0 && largest < 1e-3 {
        return ticks.iter().map(|x| if *x == 0.0 { "0".into() } else { scientific(*x) }).collect();
    }
    let (unit, suffix) = match largest {
        x if x >= 1e6 => (1e6, "M"),
        x if x >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10().floor()).clamp(0.0, 6.0) as usize;
    let label = |x: &f64| if *x == 0.0 { "0".into() } else { format!("{:.decimals$}{suffix}", x / unit) };
    ticks.iter().map(label).collect()
}

fn scientific(x: f64) -> String {
    let text = format!("{x:.1e}");
    text.replace(".0e", "e")
}

/// A number for people: about four significant digits.
pub fn short(x: f64) -> String {
    let size = x.abs();
    if !x.is_finite() {
        return x.to_string();
    }
    let text = match size {
        0.0 => return "0".into(),
        _ if size < 1e-3 => return format!("{x:.2e}"),
        _ if size < 1.0 => format!("{x:.4}"),
        _ if size < 100.0 => format!("{x:.3}"),
        _ if size < 1e4 => format!("{x:.1}"),
        _ if size < 1e6 => format!("{:.1}k", x / 1e3),
        _ if size < 1e9 => format!("{:.2}M", x / 1e6),
        _ => return format!("{x:.2e}"),
    };
    let (digits, suffix) = text.split_at(text.trim_end_matches(['k', 'M']).len());
    match digits.contains('.') {
        true => format!("{}{suffix}", digits.trim_end_matches('0').trim_end_matches('.')),
        false => text,
    }
}

/// Text that is safe between tags and in quoted attributes of HTML and SVG. Control characters, which neither allows,
/// become the replacement character.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            _ if c.is_control() => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

pub(crate) fn cut(text: &str, letters: usize) -> String {
    match text.chars().count() > letters {
        true => text.chars().take(letters - 1).chain("…".chars()).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        #[track_caller]
        fn check(low: f64, high: f64, expect: &[&str]) {
            let ticks = nice_ticks(low, high, 5);
            let room = (high - low) * 1e-6;
            assert!(ticks.iter().all(|x| (low - room..=high + room).contains(x)), "{ticks:?}");
            assert_eq!(tick_labels(&ticks), expect, "[{low}, {high}]");
        }
        check(0.0, 10.0, &["0", "2", "4", "6", "8", "10"]);
        check(0.0, 1.0, &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        check(-1.3, 2.1, &["-1", "0", "1", "2"]);
        check(0.0, 100_000.0, &["0", "20k", "40k", "60k", "80k", "100k"]);
        check(1.0, 3_000_000.0, &["1M", "2M", "3M"]);
        check(0.0, 2e-5, &["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]);
        check(0.69, 0.70, &["0.690", "0.692", "0.694", "0.696", "0.698", "0.700"]);
        check(7.1, 7.9, &["7.2", "7.4", "7.6", "7.8"]);
    }

    #[test]
    fn there_are_always_two_ticks() {
        for i in 0..2000 {
            let low = (i as f64 * 0.37).sin() * 10.0_f64.powi(i % 13 - 6);
            let high = low + 10.0_f64.powi(i % 7 - 3) * (1.0 + (i as f64).cos().abs());
            assert!(nice_ticks(low, high, 5).len() >= 2, "[{low}, {high}]");
            assert!(nice_ticks(low, high, 5).len() <= 12, "[{low}, {high}]");
        }
    }

    #[test]
    fn numbers_for_people() {
        for (x, expect) in [
            (0.0, "0"),
            (1.0, "1"),
            (-0.5, "-0.5"),
            (0.123_456, "0.1235"),
            (12.0, "12"),
            (123.456, "123.5"),
            (12_345.0, "12.3k"),
            (10_000.0, "10k"),
            (2_000_000.0, "2M"),
            (2e-5, "2.00e-5"),
            (1e12, "1.00e12"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(short(x), expect);
        }
    }
}
