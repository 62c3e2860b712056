//! Every fast operation against its plain loops, on shapes with every kind of tail.
//!
//! Matrix products, embeddings and rotations agree to the bit; the rest within about five times the measured
//! error, relative to the largest element.

mod common;

use common::Numbers;
use polity_compute::config::{AttentionParams, Heads};
use polity_compute::cpu::adamw::AdamW;
use polity_compute::cpu::attention::Rows;
use polity_compute::cpu::bf16;
use polity_compute::cpu::linear::Write;
use polity_compute::cpu::logprob::{HeadRef, LogitParams, RowStats};
use polity_compute::cpu::rope::RopeTable;
use polity_compute::params::{Buffer, LANES};
use polity_compute::*;

fn values(numbers: &mut Numbers, len: usize) -> Vec<f32> {
    (0..len).map(|_| numbers.next()).collect()
}

fn panels(numbers: &mut Numbers, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.next_multiple_of(LANES) * cols];
    for row in 0..rows {
        for col in 0..cols {
            out[row / LANES * LANES * cols + col * LANES + row % LANES] = numbers.next();
        }
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn close(what: &str, fast: &[f32], reference: &[f32], bound: f32) {
    assert_eq!(fast.len(), reference.len(), "{what}");
    let largest = reference.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let worst = fast.iter().zip(reference).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    println!("{what}: {worst:.1e}");
    assert!(worst < bound && fast.iter().all(|x| x.is_finite()), "{what}: error {worst:e}, bound {bound:e}");
}

fn cpus() -> Vec<Cpu> {
    let mut isas = vec![Isa::Portable];
    #[cfg(target_arch = "x86_64")]
    isas.extend(
        [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx].into_iter().filter(|&isa| isa <= Isa::detect()),
    );
    isas.into_iter().flat_map(|isa| [Cpu::with_isa(1, isa), Cpu::with_isa(3, isa)]).collect()
}

/// These panels, packed to be multiplied in this precision.
fn packed(cpu: &Cpu, precision: Precision, w: &[f32], n: usize, k: usize) -> (ParamSpec, Params) {
    let spec = ParamSpec { name: "w".into(), shape: Shape::Matrix { rows: n, cols: k }, offset: 0 };
    let mut params = Params::of(Buffer::zeros(w.len()));
    params.data.copy_from_slice(w);
    let cpu = Cpu::with_isa(cpu.threads(), cpu.isa()).with_precision(precision);
    params.pack(&cpu, std::slice::from_ref(&spec));
    (spec, params)
}

#[test]
fn linear_to_the_bit() {
    let mut x = Numbers(1);
    let shapes = [
        (1, 7, 5),
        (1, 40, 300),
        (5, 32, 129),
        (13, 70, 34),
        (97, 33, 140),
        (200, 96, 64),
        (33, 199, 12),
        (801, 40, 38),
        (300, 600, 10),
    ];
    for ((m, n, k), precision) in shapes.into_iter().flat_map(|s| [(s, Precision::F32), (s, Precision::Bf16)])
    {
        let (input, d_y) = (values(&mut x, m * k), values(&mut x, m * n));
        let (w, bias) = (panels(&mut x, n, k), values(&mut x, n));
        let (before_y, before_x, before_w) =
            (values(&mut x, m * n), values(&mut x, m * k), panels(&mut x, n, k));
        // An odd number of inputs has no pairs and stays f32.
        let expected = if k % 2 == 0 { precision } else { Precision::F32 };
        for order in [Order::Terms, Order::Pairs, Order::Blocks] {
            let cpus: Vec<Cpu> =
                cpus().into_iter().filter(|cpu| cpu.isa().order(expected) == order).collect();
            if cpus.is_empty() {
                continue;
            }
            let mut y = vec![f32::NAN; m * n];
            ops::linear::forward(order, &mut y, &input, &w, Some(&bias), n, k);
            let mut y_plain = vec![f32::NAN; m * n];
            ops::linear::forward(order, &mut y_plain, &input, &w, None, n, k);
            let mut d_x = before_x.clone();
            ops::linear::backward_input(order, &mut d_x, &d_y, &w, n, k);
            let mut d_x_set = vec![0.0; m * k];
            ops::linear::backward_input(order, &mut d_x_set, &d_y, &w, n, k);
            let (mut d_w, mut d_b) = (before_w.clone(), bias.clone());
            ops::linear::backward_weight(order, &mut d_w, Some(&mut d_b), &d_y, &input, n, k);
            for cpu in cpus {
                let what = format!("{cpu:?} {precision:?} {m}x{n}x{k}");
                let (spec, params) = packed(&cpu, precision, &w, n, k);
                let w = params.weights(&spec);
                assert_eq!(w.precision(), expected, "{what}");
                let mut fast = vec![f32::NAN; m * n];
                cpu::linear::forward(&cpu, &mut fast, &input, w, Some(&bias), n, k, Write::Set);
                assert_eq!(bits(&fast), bits(&y), "forward {what}");
                cpu::linear::forward(&cpu, &mut fast, &input, w, None, n, k, Write::Set);
                assert_eq!(bits(&fast), bits(&y_plain), "forward without bias {what}");
                let mut added = before_y.clone();
                cpu::linear::forward(&cpu, &mut added, &input, w, None, n, k, Write::Add);
                let mut first = [0.0];
                let from = [before_y[0]];
                let w_0 = &panel_of_one(&params.data, k);
                ops::linear::forward(order, &mut first, &input[..k], w_0, Some(&from), 1, k);
                assert_eq!(added[0].to_bits(), first[0].to_bits(), "forward that adds {what}");
                let mut fast = vec![f32::NAN; m * n];
                cpu::linear::forward(&cpu, &mut fast, &input, w, None, n, k, Write::Onto(&before_y));
                assert_eq!(bits(&fast), bits(&added), "forward onto another matrix {what}");
                for (write, start, expect) in [
                    (Write::Set, vec![f32::NAN; m * k], &d_x_set),
                    (Write::Add, before_x.clone(), &d_x),
                    (Write::Onto(&before_x), vec![f32::NAN; m * k], &d_x),
                ] {
                    let mut fast = start;
                    cpu::linear::backward_input(&cpu, &mut fast, &d_y, w, n, k, write);
                    assert_eq!(bits(&fast), bits(expect), "input gradient {what}");
                }
                let (mut fast, mut fast_b) = (before_w.clone(), bias.clone());
                cpu::linear::backward_weight(
                    &cpu,
                    w.precision(),
                    &mut fast,
                    Some(&mut fast_b),
                    &d_y,
                    &input,
                    n,
                    k,
                );
                assert_eq!(bits(&fast), bits(&d_w), "weight gradient {what}");
                assert_eq!(bits(&fast_b), bits(&d_b), "bias gradient {what}");
            }
        }
    }
}

/// Lane 0 of the first panel, in a panel of its own.
fn panel_of_one(panels: &[f32], k: usize) -> Vec<f32> {
    let mut out = vec![0.0; LANES * k];
    for (out, panel) in out.chunks_exact_mut(LANES).zip(panels.chunks_exact(LANES)) {
        out[0] = panel[0];
    }
    out
}

#[test]
fn norms() {
    let mut x = Numbers(2);
    for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer] {
        for (n, c) in [(1, 5), (19, 48), (40, 100)] {
            let layer = kind == NormKind::Layer;
            let means = if layer { n } else { 0 };
            let (input, d_y, w) = (values(&mut x, n * c), values(&mut x, n * c), values(&mut x, c));
            let b = layer.then(|| values(&mut x, c));
            let (mut y, mut mean, mut rstd) = (vec![0.0; n * c], vec![0.0; means], vec![0.0; n]);
            ops::norm::forward(kind, &mut y, &mut mean, &mut rstd, &input, &w, b.as_deref(), 1e-5);
            let before = values(&mut x, n * c);
            let (mut d_x, mut d_w, mut d_b) = (before.clone(), w.clone(), b.clone());
            ops::norm::backward(kind, &mut d_x, &mut d_w, d_b.as_deref_mut(), &d_y, &input, &w, &mean, &rstd);
            for cpu in cpus() {
                let what = format!("{kind:?} {n}x{c} {cpu:?}");
                let (mut fy, mut fm, mut fr) = (vec![0.0; n * c], vec![0.0; means], vec![0.0; n]);
                cpu::norm::forward(&cpu, kind, &mut fy, &mut fm, &mut fr, &input, &w, b.as_deref(), 1e-5);
                close(&format!("norm {what}"), &fy, &y, 1e-6);
                close(&format!("rstd {what}"), &fr, &rstd, 1e-6);
                let (mut fx, mut fw, mut fb) = (before.clone(), w.clone(), b.clone());
                cpu::norm::backward_input(&cpu, kind, &mut fx, &d_y, &input, &w, &fm, &fr);
                cpu::norm::backward_weight(&cpu, &mut fw, fb.as_deref_mut(), &d_y, &input, &fm, &fr);
                let mut again = vec![0.0; n * c];
                cpu::norm::again(&cpu, kind, &mut again, &fm, &fr, &input, &w, b.as_deref());
                assert_eq!(bits(&again), bits(&fy), "norm again {what}");
                close(&format!("norm d_x {what}"), &fx, &d_x, 2e-6);
                close(&format!("norm d_w {what}"), &fw, &d_w, 2e-6);
                if let (Some(fb), Some(d_b)) = (fb, d_b.clone()) {
                    close(&format!("norm d_b {what}"), &fb, &d_b, 2e-6);
                }
            }
        }
    }
}

#[test]
fn qk_norms() {
    let mut x = Numbers(3);
    let shape = Heads { heads: 4, kv_heads: 2, head_dim: 10 };
    let (n, eps) = (21, 1e-6);
    let qk = shape.q_width() + shape.kv_width();
    for per_head in [true, false] {
        let (wq, wk) = if per_head { (10, 10) } else { (40, 20) };
        let (w_q, w_k) = (values(&mut x, wq), values(&mut x, wk));
        let qkv = values(&mut x, n * shape.qkv_width());
        let raw: Vec<f32> = qkv.chunks_exact(shape.qkv_width()).flat_map(|r| r[..qk].to_vec()).collect();
        let d = values(&mut x, n * shape.qkv_width());
        let mut y = qkv.clone();
        let mut rstd = vec![0.0; n * ops::qk_norm::groups(per_head, shape)];
        ops::qk_norm::forward(&mut y, &mut rstd, per_head, &w_q, &w_k, shape, eps);
        let (mut d_x, mut d_q, mut d_k) = (d.clone(), w_q.clone(), w_k.clone());
        ops::qk_norm::backward(&mut d_x, &mut d_q, &mut d_k, &raw, &rstd, &w_q, &w_k, per_head, shape);
        for cpu in cpus() {
            let mut fy = qkv.clone();
            let mut fr = vec![0.0; rstd.len()];
            cpu::qk_norm::forward(&cpu, &mut fy, &mut fr, per_head, &w_q, &w_k, shape, eps);
            close("qk_norm", &fy, &y, 1e-6);
            let (mut fx, mut fq, mut fk) = (d.clone(), w_q.clone(), w_k.clone());
            cpu::qk_norm::backward(&cpu, &mut fx, &mut fq, &mut fk, &raw, &fr, &w_q, &w_k, per_head, shape);
            close("qk_norm d_x", &fx, &d_x, 2e-6);
            close("qk_norm d_w_q", &fq, &d_q, 2e-6);
            close("qk_norm d_w_k", &fk, &d_k, 2e-6);
        }
    }
}

#[test]
fn rotations_and_embeddings_to_the_bit() {
    let mut x = Numbers(4);
    let shape = Heads { heads: 3, kv_heads: 1, head_dim: 14 };
    let positions: Vec<usize> = (0..37).map(|i| i * i * 7).collect();
    for half in [0, 3, 7] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i)).collect();
        for inverse in [false, true] {
            let qkv = values(&mut x, positions.len() * shape.qkv_width());
            let mut expect = qkv.clone();
            ops::rope::rotate(&mut expect, &positions, &inv_freq, shape, inverse);
            for cpu in cpus() {
                let mut table = RopeTable::default();
                table.fill(&cpu, &positions, &inv_freq);
                let mut fast = qkv.clone();
                cpu::rope::rotate(&cpu, &mut fast, table.rows(0..positions.len()), shape, inverse);
                assert_eq!(bits(&fast), bits(&expect), "rope {half} {cpu:?}");
            }
        }
    }
    let (v, c, n) = (50, 21, 40);
    let ids = x.ids(n, v);
    let positions: Vec<usize> = (0..n).map(|i| i % 9).collect();
    let (table, learned) = (panels(&mut x, v, c), values(&mut x, 9 * c));
    let d_x = values(&mut x, n * c);
    for learned in [None, Some(learned.as_slice())] {
        let mut expect = vec![0.0; n * c];
        ops::embed::forward(&mut expect, &ids, &positions, &table, learned, 1.5, c);
        let (mut d_table, mut d_learned) = (table.clone(), learned.map(<[f32]>::to_vec));
        ops::embed::backward(&mut d_table, d_learned.as_deref_mut(), &d_x, &ids, &positions, 1.5, c);
        for cpu in cpus() {
            let mut fast = vec![0.0; n * c];
            cpu::embed::forward(&cpu, &mut fast, &ids, &positions, &table, learned, 1.5, c);
            assert_eq!(bits(&fast), bits(&expect), "embed {cpu:?}");
            let (mut f_table, mut f_learned) = (table.clone(), learned.map(<[f32]>::to_vec));
            cpu::embed::backward(
                &cpu,
                &mut f_table,
                f_learned.as_deref_mut(),
                &d_x,
                &ids,
                &positions,
                1.5,
                c,
            );
            assert_eq!(bits(&f_table), bits(&d_table), "embed gradient {cpu:?}");
            assert_eq!(f_learned.map(|l| bits(&l)), d_learned.as_ref().map(|l| bits(l)), "positions {cpu:?}");
        }
    }
}

#[test]
fn activations() {
    let mut x = Numbers(5);
    for mlp in [Mlp::GatedSilu, Mlp::GatedGeluTanh, Mlp::Gelu, Mlp::GeluTanh] {
        let (n, f) = (13, 37);
        let u = if mlp.gated() { 2 * f } else { f };
        let up: Vec<f32> = values(&mut x, n * u).iter().map(|v| v * 6.0).collect();
        let d_y = values(&mut x, n * f);
        let (mut y, mut d_up) = (vec![0.0; n * f], vec![0.0; n * u]);
        ops::activation::forward(mlp, &mut y, &up, f);
        ops::activation::backward(mlp, &mut d_up, &d_y, &up, f);
        for cpu in cpus() {
            let (mut fy, mut fd) = (vec![f32::NAN; n * f], vec![f32::NAN; n * u]);
            cpu::activation::forward(&cpu, mlp, &mut fy, &up, f);
            cpu::activation::backward(&cpu, mlp, &mut fd, &d_y, &up, f);
            close(&format!("{mlp:?}"), &fy, &y, 1e-6);
            close(&format!("{mlp:?} gradient"), &fd, &d_up, 6e-6);
        }
    }
}

#[test]
fn attention() {
    let mut x = Numbers(6);
    let mut batch = Batch::new();
    let prompt = batch.push(&[0; 45], None);
    batch.push(&[0; 3], Some(prompt));
    let child = batch.push(&[0; 70], Some(prompt));
    batch.push(&[], Some(child));
    batch.push(&[0; 1], Some(child));
    // Longer than a chunk of keys, which ends elsewhere than the prompt does.
    batch.push(&[0; 100], Some(child));
    batch.push(&[0; 150], None);
    // The last is wider than what is packed row by row.
    for (heads, kv_heads, head_dim) in [(4, 2, 8), (3, 3, 24), (6, 1, 40), (2, 1, 331)] {
        let shape = Heads { heads, kv_heads, head_dim };
        for (softcap, window) in [(None, None), (Some(2.0), None), (None, Some(6)), (None, Some(50))] {
            let p = AttentionParams { scale: 0.4, softcap, window };
            // Weights and gradients of scores are rounded in bf16; measured: 3.6e-3.
            let bounds = [(Precision::F32, [4e-6, 6e-6]), (Precision::Bf16, [1e-2, 1e-2])];
            attention_is_reference(&mut x, &batch, shape, p, bounds);
        }
    }
}

/// A tree whose query rows are several tasks, which walk over many chunks of keys.
#[test]
fn attention_over_long_rows() {
    let mut x = Numbers(7);
    let mut batch = Batch::new();
    let prompt = batch.push(&[0; 700], None);
    batch.push(&[0; 30], Some(prompt));
    batch.push(&[0; 1100], Some(prompt));
    batch.push(&[0; 40], None);
    let shape = Heads { heads: 2, kv_heads: 1, head_dim: 8 };
    for window in [None, Some(300)] {
        let p = AttentionParams { scale: 1.5, softcap: None, window };
        // Measured: 1.6e-6 and 5.3e-3.
        let bounds = [(Precision::F32, [4e-6, 6e-6]), (Precision::Bf16, [1e-2, 2e-2])];
        attention_is_reference(&mut x, &batch, shape, p, bounds);
    }
}

fn attention_is_reference(
    x: &mut Numbers,
    batch: &Batch,
    shape: Heads,
    p: AttentionParams,
    bounds: [(Precision, [f32; 2]); 2],
) {
    let size = (2.0 * 8.0 / shape.head_dim as f32).min(2.0);
    let n = batch.tokens();
    let qkv: Vec<f32> = values(x, n * shape.qkv_width()).iter().map(|v| bf16::round(v * size)).collect();
    let halves: Vec<u16> = qkv.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    let d_out = values(x, n * shape.q_width());
    let before = values(x, qkv.len());
    let nh = n * shape.heads;
    let (mut out, mut max, mut sum) = (vec![0.0; d_out.len()], vec![0.0; nh], vec![0.0; nh]);
    ops::attention::forward(&mut out, &mut max, &mut sum, &qkv, batch, shape, p);
    let mut d_qkv = before.clone();
    ops::attention::backward(&mut d_qkv, &d_out, &out, &max, &sum, &qkv, batch, shape, p);
    for (precision, bounds) in bounds {
        let mut before_it: Option<(Isa, Vec<f32>)> = None;
        for cpu in cpus() {
            let what = format!("{shape:?} {p:?} {cpu:?} {precision:?}");
            let (mut fo, mut fm, mut fs) = (vec![f32::NAN; d_out.len()], vec![0.0; nh], vec![0.0; nh]);
            let mut run = |qkv: Rows<'_>| {
                cpu::attention::forward(&cpu, precision, &mut fo, &mut fm, &mut fs, qkv, batch, shape, p);
                let mut fd = before.clone();
                cpu::attention::backward(
                    &cpu, precision, &mut fd, &d_out, &fo, &fm, &fs, qkv, batch, shape, p,
                );
                (fo.clone(), fd)
            };
            let (fo, fd) = run(Rows::Floats(&qkv));
            close(&format!("attention {what}"), &fo, &out, bounds[0]);
            close(&format!("attention gradient {what}"), &fd, &d_qkv, bounds[1]);
            if precision == Precision::Bf16 {
                assert_eq!(run(Rows::Halves(&halves)), (fo.clone(), fd.clone()), "{what}: rounded before");
            }
            match &before_it {
                Some((isa, d)) if *isa == cpu.isa() => {
                    assert_eq!(bits(d), bits(&fd), "{what}: other threads")
                }
                _ => before_it = Some((cpu.isa(), fd)),
            }
        }
    }
}

#[test]
fn logprobs() {
    let mut x = Numbers(7);
    for v in [5, 199, 1000] {
        for softcap in [None, Some(4.0)] {
            for temperature in [1.0, 0.7] {
                let z: Vec<f32> = values(&mut x, v).iter().map(|v| v * 8.0).collect();
                let token = 3;
                let expect = ops::logprob::row(&z, softcap, temperature, token);
                for cpu in cpus() {
                    let mut y = z.clone();
                    cpu::logprob::finish(cpu.isa(), &mut y, LogitParams { softcap, temperature });
                    let fast = RowStats::of(cpu.isa(), &y, token);
                    // Measured 5e-7.
                    assert!((f64::from(fast.logprob) - expect.logprob).abs() < 3e-6, "{fast:?} {expect:?}");
                    assert!((f64::from(fast.entropy) - expect.entropy).abs() < 3e-6, "{fast:?} {expect:?}");
                }
                // Through an identity head: hidden states are the logits, so d_hidden is d_z.
                let mut eye = vec![0.0; v.next_multiple_of(LANES) * v];
                for i in 0..v {
                    eye[i / LANES * LANES * v + i * LANES + i % LANES] = 1.0;
                }
                let logits = LogitParams { softcap, temperature };
                let expect = ops::logprob::log_sum_sq(&z, softcap, temperature);
                for cpu in cpus() {
                    let head = HeadRef { w: Weights::F32(&eye), vocab: v, width: v, logits };
                    let fast = cpu::logprob::log_sum_sq(&cpu, &z, 1, head, &mut Default::default())[0];
                    // Measured 5e-7.
                    assert!((f64::from(fast) - expect).abs() < 3e-6, "{fast} {expect}");
                }
                for (d_logprob, d_entropy) in [(1.0, 0.0), (0.3, -0.7)] {
                    let mut d_z = vec![0.0; v];
                    ops::logprob::row_backward(
                        &mut d_z,
                        &z,
                        softcap,
                        temperature,
                        token,
                        d_logprob,
                        d_entropy,
                    );
                    for cpu in cpus() {
                        let head = HeadRef { w: Weights::F32(&eye), vocab: v, width: v, logits };
                        let (mut d_hidden, mut d_w) = (vec![0.0; v], vec![0.0; eye.len()]);
                        let of = cpu::logprob::forward(&cpu, &z, &[token], head);
                        cpu::logprob::backward(
                            &cpu,
                            &mut d_hidden,
                            &mut d_w,
                            &of,
                            &[d_logprob],
                            &[d_entropy],
                            &z,
                            &[token],
                            head,
                            &mut Default::default(),
                        );
                        // Relative to the incoming gradient: where a token is nearly certain, 1 - p cancels.
                        let with_one = |d: &[f32]| [d, &[1.0]].concat();
                        let what = format!("logprob gradient {v} {logits:?}");
                        close(&what, &with_one(&d_hidden), &with_one(&d_z), 2e-6);
                    }
                }
            }
        }
    }
}

/// Rows are summed by blocks of 512: one of forbidden tokens alone has no maximum, and a later one may be far above the others.
#[test]
fn logprobs_of_forbidden_blocks() {
    let values = values(&mut Numbers(9), 1400);
    let forbidden = |range: std::ops::Range<usize>| {
        let mut y = values.clone();
        y[range].fill(f32::NEG_INFINITY);
        y
    };
    let mut apart = values.clone();
    apart[1300] = 900.0;
    for y in [forbidden(0..512), forbidden(512..1024), forbidden(600..1400), forbidden(0..1399), apart] {
        for token in [3, 700, 1300, 1399] {
            let expect = ops::logprob::row(&y, None, 1.0, token);
            for cpu in cpus() {
                let fast = RowStats::of(cpu.isa(), &y, token);
                let (logprob, entropy) = (f64::from(fast.logprob), f64::from(fast.entropy));
                let near = |a: f64, b: f64| a == b || (a - b).abs() < 1e-5 * b.abs().max(1.0);
                assert!(near(logprob, expect.logprob), "{fast:?} {expect:?}");
                assert!(near(entropy, expect.entropy), "{fast:?} {expect:?}");
            }
        }
    }
    let mut broken = values.clone();
    broken[1200] = f32::NAN;
    let stats = RowStats::of(polity_compute::Isa::detect(), &broken, 0);
    assert!(stats.logprob.is_nan() && stats.entropy.is_nan(), "{stats:?}");
}

#[test]
fn adamw() {
    let mut x = Numbers(8);
    let len = 40_000;
    let (w, g) = (values(&mut x, len), values(&mut x, len));
    let m = values(&mut x, len);
    let v: Vec<f32> = values(&mut x, len).iter().map(|v| v * v).collect();
    let (mut rw, mut rm, mut rv) = (w.clone(), m.clone(), v.clone());
    ops::adamw::update(&mut rw, &mut rm, &mut rv, &g, 0.5, 1e-2, 0.9, 0.999, 1e-8, 0.1, 7);
    let p =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 7, grad_scale: 0.5 };
    for cpu in cpus() {
        let [mut fw, mut fm, mut fv, mut fg] = [&w, &m, &v, &g].map(Clone::clone);
        cpu::adamw::update(&cpu, &mut fw, None, &mut fm, &mut fv, &mut fg, p);
        assert!(fg.iter().all(|&g| g == 0.0), "the gradient is used up");
        close("adamw weights", &fw, &rw, 5e-7);
        close("adamw m", &fm, &rm, 5e-7);
        close("adamw v", &fv, &rv, 5e-7);
        let (fast, expect) = (cpu::adamw::norm_sq(&cpu, &g), ops::adamw::norm_sq(&g));
        assert!((fast - expect).abs() / expect < 1e-12);
    }
}
