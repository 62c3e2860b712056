//! The reference operations against stored PyTorch numbers (`golden/make_ops.py` made them).
//!
//! Errors are relative to the largest element of the expected tensor, the tolerance is about five
//! times the measured error. PyTorch computed in f64, so the error is ours; for rope and AdamW, which
//! it computed in f32, it is both. `cargo test -p polity-compute --test ops_golden -- --nocapture` prints
//! the errors.

use polity_compute::config::{AttentionParams, Heads};
use polity_compute::params::{Buffer, LANES};
use polity_compute::{Batch, Mlp, NormKind, Order, ParamSpec, Params, Shape, ops};
use safetensors::{Dtype, SafeTensors};

/// What gradients hold before a backward, which must add.
const BEFORE: f32 = 0.5;

struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ops.safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    fn get<T, const SIZE: usize>(&self, name: &str, dtype: Dtype, from: fn([u8; SIZE]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().as_chunks::<SIZE>().0.iter().map(|&bytes| from(bytes)).collect()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.get(name, Dtype::F32, f32::from_le_bytes)
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        self.get(name, Dtype::F64, f64::from_le_bytes)
    }

    fn i64(&self, name: &str) -> Vec<i64> {
        self.get(name, Dtype::I64, i64::from_le_bytes)
    }

    fn indices(&self, name: &str) -> Vec<usize> {
        self.i64(name).into_iter().map(|i| i.try_into().unwrap()).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.i64(name).into_iter().map(|i| i.try_into().unwrap()).collect()
    }

    fn number(&self, name: &str) -> f32 {
        self.f32(name)[0]
    }

    /// A number that stands for "none" as 0.
    fn option(&self, name: &str) -> Option<f32> {
        Some(self.number(name)).filter(|&number| number != 0.0)
    }

    #[track_caller]
    fn check(&self, name: &str, got: &[f32], tolerance: f64) {
        let expect = self.f32(name);
        assert_eq!(got.len(), expect.len(), "{name}");
        let largest = expect.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
        assert!(largest > 0.0, "{name}: zeros check nothing");
        let error = |i: usize| (f64::from(got[i]) - f64::from(expect[i])).abs() / largest;
        let worst = (0..got.len()).max_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap();
        println!("{name}: worst error {:.1e}", error(worst));
        assert!(
            error(worst) < tolerance,
            "{name}[{worst}]: {} PyTorch {} error {:.1e}",
            got[worst],
            expect[worst],
            error(worst)
        );
    }

    #[track_caller]
    fn check_added(&self, name: &str, gradient: &[f32], tolerance: f64) {
        self.check(name, &gradient.iter().map(|g| g - BEFORE).collect::<Vec<_>>(), tolerance);
    }
}

fn unwritten(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

fn before(len: usize) -> Vec<f32> {
    vec![BEFORE; len]
}

/// Rows of a matrix, packed in panels and read back by the crate's own layout.
fn spec(rows: usize, cols: usize) -> ParamSpec {
    ParamSpec { name: "w".into(), shape: Shape::Matrix { rows, cols }, offset: 0 }
}

fn to_panels(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let mut params = Params::of(Buffer::zeros(rows.next_multiple_of(LANES) * cols));
    params.write_rows(&spec(rows, cols), 0, values);
    params.data.to_vec()
}

fn from_panels(panels: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut params = Params::of(Buffer::zeros(panels.len()));
    params.data.copy_from_slice(panels);
    params.read_rows(&spec(rows, cols), 0, rows)
}

#[test]
fn linear() {
    let golden = Golden::read();
    let get = |name: &str| golden.f32(&format!("linear.{name}"));
    let (n, k) = (get("b").len(), get("d_w").len() / get("b").len());
    let (x, w, d_y) = (get("x"), to_panels(&get("w"), k), get("d_y"));
    let mut y = unwritten(d_y.len());
    ops::linear::forward(Order::Terms, &mut y, &x, &w, Some(&get("b")), n, k);
    let (mut d_x, mut d_w, mut d_b) = (before(x.len()), before(w.len()), before(n));
    ops::linear::backward_input(Order::Terms, &mut d_x, &d_y, &w, n, k);
    ops::linear::backward_weight(Order::Terms, &mut d_w, Some(&mut d_b), &d_y, &x, n, k);
    // Measured worst 1.4e-7.
    golden.check("linear.y", &y, 7e-7);
    golden.check_added("linear.d_x", &d_x, 7e-7);
    golden.check_added("linear.d_w", &from_panels(&d_w, n, k), 7e-7);
    golden.check_added("linear.d_b", &d_b, 7e-7);
}

#[test]
fn norm() {
    let golden = Golden::read();
    for (name, kind) in
        [("rms", NormKind::Rms), ("rms_plus_one", NormKind::RmsPlusOne), ("layer", NormKind::Layer)]
    {
        let at = |field: &str| format!("norm.{name}.{field}");
        let get = |field: &str| golden.f32(&at(field));
        let layer = kind == NormKind::Layer;
        let (x, w, d_y, eps) = (get("x"), get("w"), get("d_y"), golden.number(&at("eps")));
        let b = layer.then(|| get("b"));
        let n = x.len() / w.len();
        let (mut y, mut mean, mut rstd) =
            (unwritten(x.len()), unwritten(if layer { n } else { 0 }), unwritten(n));
        ops::norm::forward(kind, &mut y, &mut mean, &mut rstd, &x, &w, b.as_deref(), eps);
        let (mut d_x, mut d_w) = (before(x.len()), before(w.len()));
        let mut d_b = layer.then(|| before(w.len()));
        ops::norm::backward(kind, &mut d_x, &mut d_w, d_b.as_deref_mut(), &d_y, &x, &w, &mean, &rstd);
        // Measured worst 7.1e-8.
        golden.check(&at("y"), &y, 3.6e-7);
        golden.check_added(&at("d_x"), &d_x, 3.6e-7);
        golden.check_added(&at("d_w"), &d_w, 3.6e-7);
        if let Some(d_b) = d_b {
            golden.check_added(&at("d_b"), &d_b, 3.6e-7);
        }
    }
}

#[test]
fn rope() {
    let golden = Golden::read();
    for (name, head_dim) in [("full", 8), ("partial", 16)] {
        let at = |field: &str| format!("rope.{name}.{field}");
        let shape = Heads { heads: 3, kv_heads: 1, head_dim };
        let (position, inv_freq) = (golden.indices(&at("position")), golden.f32(&at("inv_freq")));
        let rotate = |field: &str, inverse| {
            let mut qkv = golden.f32(&at(field));
            ops::rope::rotate(&mut qkv, &position, &inv_freq, shape, inverse);
            qkv
        };
        // Measured worst 4.4e-8, with positions up to 100003: the f32 angle is the same.
        golden.check(&at("y"), &rotate("qkv", false), 2.2e-7);
        golden.check(&at("d_qkv"), &rotate("d_y", true), 2.2e-7);
    }
}

#[test]
fn qk_norm() {
    let golden = Golden::read();
    let shape = Heads { heads: 4, kv_heads: 2, head_dim: 6 };
    let (width, qk_width) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
    for (name, per_head) in [("per_head", true), ("whole", false)] {
        let at = |field: &str| format!("qk_norm.{name}.{field}");
        let get = |field: &str| golden.f32(&at(field));
        let (raw, w_q, w_k, eps) = (get("qkv"), get("w_q"), get("w_k"), golden.number(&at("eps")));
        let (mut qkv, groups) = (raw.clone(), ops::qk_norm::groups(per_head, shape));
        let mut rstd = unwritten(raw.len() / width * groups);
        ops::qk_norm::forward(&mut qkv, &mut rstd, per_head, &w_q, &w_k, shape, eps);
        let qk_raw: Vec<f32> = raw.chunks_exact(width).flat_map(|row| &row[..qk_width]).copied().collect();
        let (mut d_qkv, mut d_w_q, mut d_w_k) = (get("d_y"), before(w_q.len()), before(w_k.len()));
        ops::qk_norm::backward(
            &mut d_qkv, &mut d_w_q, &mut d_w_k, &qk_raw, &rstd, &w_q, &w_k, per_head, shape,
        );
        // Measured worst 9.6e-8.
        golden.check(&at("y"), &qkv, 5e-7);
        golden.check(&at("d_qkv"), &d_qkv, 5e-7);
        golden.check_added(&at("d_w_q"), &d_w_q, 5e-7);
        golden.check_added(&at("d_w_k"), &d_w_k, 5e-7);
    }
}

// PyTorch computed each row of the tree on its own.
#[test]
fn attention() {
    let golden = Golden::read();
    let mut batch = Batch::new();
    let lens = golden.indices("attention.segment_len");
    for (len, parent) in lens.into_iter().zip(golden.i64("attention.segment_parent")) {
        batch.push(&vec![0; len], parent.try_into().ok());
    }
    for name in ["grouped", "softcap", "window", "softcap_window"] {
        let at = |field: &str| format!("attention.{name}.{field}");
        let get = |field: &str| golden.f32(&at(field));
        let [heads, kv_heads, head_dim] = golden.indices(&at("shape"))[..] else { panic!("{name}: shape") };
        let shape = Heads { heads, kv_heads, head_dim };
        let p = AttentionParams {
            scale: golden.number(&at("scale")),
            softcap: golden.option(&at("softcap")),
            window: Some(golden.indices(&at("window"))[0]).filter(|&window| window > 0),
        };
        let (qkv, d_out) = (get("qkv"), get("d_out"));
        let n = batch.tokens();
        let (mut out, mut max, mut sum) =
            (unwritten(d_out.len()), unwritten(n * heads), unwritten(n * heads));
        ops::attention::forward(&mut out, &mut max, &mut sum, &qkv, &batch, shape, p);
        let mut d_qkv = before(qkv.len());
        ops::attention::backward(&mut d_qkv, &d_out, &out, &max, &sum, &qkv, &batch, shape, p);
        // Measured worst 9.9e-8 (d_qkv); out agrees to the bit.
        golden.check(&at("out"), &out, 5e-7);
        golden.check_added(&at("d_qkv"), &d_qkv, 5e-7);
    }
}

#[test]
fn activation() {
    let golden = Golden::read();
    for (name, mlp) in [
        ("gated_silu", Mlp::GatedSilu),
        ("gated_gelu_tanh", Mlp::GatedGeluTanh),
        ("gelu", Mlp::Gelu),
        ("gelu_tanh", Mlp::GeluTanh),
    ] {
        let at = |field: &str| format!("activation.{name}.{field}");
        let (up, d_y) = (golden.f32(&at("up")), golden.f32(&at("d_y")));
        let (mut y, mut d_up) = (unwritten(d_y.len()), unwritten(up.len()));
        ops::activation::forward(mlp, &mut y, &up, 8);
        ops::activation::backward(mlp, &mut d_up, &d_y, &up, 8);
        // Measured 0: f64 on both sides, one rounding. One unit is left for another libm.
        golden.check(&at("y"), &y, 1e-7);
        golden.check(&at("d_up"), &d_up, 1e-7);
    }
}

#[test]
fn logprob() {
    let golden = Golden::read();
    let get = |name: &str| golden.f32(&format!("logprob.{name}"));
    let (z, other, token) = (get("z"), get("other"), golden.ids("logprob.token"));
    let (d_logprob, d_entropy) = (get("d_logprob"), get("d_entropy"));
    let v = z.len() / token.len();
    for name in ["plain", "warm", "cool", "softcap", "both"] {
        let at = |field: &str| format!("logprob.{name}.{field}");
        let (softcap, temperature) = (golden.option(&at("softcap")), golden.number(&at("temperature")));
        let (mut logprob, mut entropy, mut lse, mut kl) = (vec![], vec![], vec![], vec![]);
        let mut d_z = unwritten(z.len());
        for (i, (z_v, d_z_v)) in z.chunks_exact(v).zip(d_z.chunks_exact_mut(v)).enumerate() {
            let stats = ops::logprob::row(z_v, softcap, temperature, token[i]);
            logprob.push(stats.logprob as f32);
            entropy.push(stats.entropy as f32);
            lse.push(stats.lse as f32);
            kl.push(ops::logprob::kl_full(z_v, &other[i * v..(i + 1) * v], softcap, temperature) as f32);
            let (d_logprob, d_entropy) = (d_logprob[i], d_entropy[i]);
            ops::logprob::row_backward(d_z_v, z_v, softcap, temperature, token[i], d_logprob, d_entropy);
        }
        // Measured 0: f64 on both sides, one rounding. One unit is left for another libm.
        golden.check(&at("logprob"), &logprob, 1e-7);
        golden.check(&at("entropy"), &entropy, 1e-7);
        golden.check(&at("lse"), &lse, 1e-7);
        golden.check(&at("kl"), &kl, 1e-7);
        golden.check(&at("d_z"), &d_z, 1e-7);
    }
}

#[test]
fn embed() {
    let golden = Golden::read();
    let get = |name: &str| golden.f32(&format!("embed.{name}"));
    let (ids, position, scale) =
        (golden.ids("embed.ids"), golden.indices("embed.position"), golden.number("embed.scale"));
    let (rows, d_x, position_table) = (get("table"), get("d_x"), get("position_table"));
    let c = d_x.len() / ids.len();
    let table = to_panels(&rows, c);
    let mut x = unwritten(d_x.len());
    ops::embed::forward(&mut x, &ids, &position, &table, Some(&position_table), scale, c);
    let (mut d_table, mut d_position_table) = (before(table.len()), before(position_table.len()));
    ops::embed::backward(&mut d_table, Some(&mut d_position_table), &d_x, &ids, &position, scale, c);
    // Measured worst 8.4e-8.
    golden.check("embed.x", &x, 4.2e-7);
    golden.check_added("embed.d_table", &from_panels(&d_table, rows.len() / c, c), 4.2e-7);
    golden.check_added("embed.d_position_table", &d_position_table, 4.2e-7);
}

#[test]
fn scalar_head() {
    let golden = Golden::read();
    let get = |name: &str| golden.f32(&format!("scalar_head.{name}"));
    let (x, w, d_out, row) = (get("x"), get("w"), get("d_out"), golden.indices("scalar_head.row"));
    let mut out = unwritten(row.len());
    ops::scalar_head::forward(&mut out, &x, &row, &w);
    let (mut d_x, mut d_w) = (before(x.len()), before(w.len()));
    ops::scalar_head::backward(&mut d_x, &mut d_w, &d_out, &x, &row, &w);
    // Measured worst 9.0e-8.
    golden.check("scalar_head.out", &out, 4.5e-7);
    golden.check_added("scalar_head.d_x", &d_x, 4.5e-7);
    golden.check_added("scalar_head.d_w", &d_w, 4.5e-7);
}

// Ten steps each, checked after every step.
#[test]
fn adamw() {
    let golden = Golden::read();
    for name in ["default", "strong", "clipped"] {
        let at = |field: &str| format!("adamw.{name}.{field}");
        let get = |field: &str| golden.f32(&at(field));
        let [lr, beta1, beta2, eps, weight_decay, clip] = golden.f64(&at("coefficients"))[..] else {
            panic!("{name}: coefficients")
        };
        let mut w = get("w");
        let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        let (grads, mut after) = (get("grads"), Vec::new());
        for (i, g) in grads.chunks_exact(w.len()).enumerate() {
            let grad_scale = match clip {
                0.0 => 1.0,
                // As torch.nn.utils.clip_grad_norm_.
                _ => (clip / (ops::adamw::norm_sq(g).sqrt() + 1e-6)).min(1.0) as f32,
            };
            let step = i as u64 + 1;
            ops::adamw::update(
                &mut w,
                &mut m,
                &mut v,
                g,
                grad_scale,
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                step,
            );
            after.extend_from_slice(&w);
        }
        // Measured worst 7.2e-8.
        golden.check(&at("after"), &after, 3.6e-7);
        golden.check(&at("m"), &m, 3.6e-7);
        golden.check(&at("v"), &v, 3.6e-7);
    }
}
