"""Writes src/golden.rs: what `polity doctor` expects, from PyTorch and Transformers (2.15 and 5.23).

Three tiny models whose weights are a formula, so that nothing but a few numbers is stored:

  state = fnv1a64(tensor name); repeat: state = state * 6364136223846793005 + 1442695040888963407 mod 2^64
  u     = (state >> 40) / 2^23 - 1                      in [-1, 1), exact in f32
  value = center + u / 4                                center 1 for norm weights (0 for Gemma 2, which adds 1), else 0

with Polity's own tensor names (`crates/compute/src/params.rs`), row by row. Of each model: log-prob and entropy of the
ids after the first, the gradient's norm for the mean loss, and the losses of three steps of AdamW.

Run: python make_doctor.py | rustfmt --edition 2024 --config max_width=110,use_small_heuristics=Max > ../../src/golden.rs
"""
import json
import numpy as np
import torch
import transformers as tf

torch.set_num_threads(1)
IDS = [1, 17, 42, 5, 60, 33, 8, 8, 21, 50, 3, 12]
STEPS, LR, BETAS, EPS, DECAY, CLIP = 3, 1e-2, (0.9, 0.999), 1e-8, 0.1, 1.0
COMMON = dict(vocab_size=61, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, **COMMON)
MODELS = {
    "llama": tf.LlamaConfig(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0), **LLAMA),
    "gemma2": tf.Gemma2Config(head_dim=8, query_pre_attn_scalar=8, sliding_window=4, **LLAMA),
    "gpt2": tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **COMMON),
}


def formula(name, shape, center):
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    values = np.empty(int(np.prod(shape)), np.float32)
    for i in range(values.size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values[i] = np.float32(center) + np.float32((state >> 40) / 2**23 - 1) / np.float32(4)
    return torch.from_numpy(values.reshape(shape))


def fill(model, config):
    """Sets the weights; fused tensors of Polity are cut into Transformers' parts."""
    w = dict(model.named_parameters())
    put = lambda name, value: w.pop(name).data.copy_(value)
    c, l = config.hidden_size, config.num_hidden_layers
    if config.model_type == "gpt2":
        put("transformer.wte.weight", formula("embed.weight", (61, c), 0))
        put("transformer.wpe.weight", formula("position_embed.weight", (64, c), 0))
        for i in range(l):
            hf, own = f"transformer.h.{i}.", f"layers.{i}."
            for a, b in (("ln_1", "attn_norm"), ("ln_2", "mlp_norm")):
                put(f"{hf}{a}.weight", formula(f"{own}{b}.weight", (c,), 1))
                put(f"{hf}{a}.bias", formula(f"{own}{b}.bias", (c,), 0))
            for a, b, n, k in (("attn.c_attn", "qkv", 3 * c, c), ("attn.c_proj", "attn_out", c, c),
                               ("mlp.c_fc", "up", 4 * c, c), ("mlp.c_proj", "down", c, 4 * c)):
                put(f"{hf}{a}.weight", formula(f"{own}{b}.weight", (n, k), 0).T)  # Conv1D keeps [in, out]
                put(f"{hf}{a}.bias", formula(f"{own}{b}.bias", (n,), 0))
        put("transformer.ln_f.weight", formula("final_norm.weight", (c,), 1))
        put("transformer.ln_f.bias", formula("final_norm.bias", (c,), 0))
    else:
        gemma = config.model_type == "gemma2"
        norm = lambda name: formula(name, (c,), 0 if gemma else 1)
        q, kv, f = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim, config.intermediate_size
        put("model.embed_tokens.weight", formula("embed.weight", (61, c), 0))
        for i in range(l):
            hf, own = f"model.layers.{i}.", f"layers.{i}."
            qkv = formula(f"{own}qkv.weight", (q + 2 * kv, c), 0)
            for part, rows in (("q", qkv[:q]), ("k", qkv[q:q + kv]), ("v", qkv[q + kv:])):
                put(f"{hf}self_attn.{part}_proj.weight", rows)
            put(f"{hf}self_attn.o_proj.weight", formula(f"{own}attn_out.weight", (c, q), 0))
            up = formula(f"{own}up.weight", (2 * f, c), 0)
            put(f"{hf}mlp.gate_proj.weight", up[:f])
            put(f"{hf}mlp.up_proj.weight", up[f:])
            put(f"{hf}mlp.down_proj.weight", formula(f"{own}down.weight", (c, f), 0))
            put(f"{hf}input_layernorm.weight", norm(f"{own}attn_norm.weight"))
            if gemma:
                put(f"{hf}post_attention_layernorm.weight", norm(f"{own}attn_post_norm.weight"))
                put(f"{hf}pre_feedforward_layernorm.weight", norm(f"{own}mlp_norm.weight"))
                put(f"{hf}post_feedforward_layernorm.weight", norm(f"{own}mlp_post_norm.weight"))
            else:
                put(f"{hf}post_attention_layernorm.weight", norm(f"{own}mlp_norm.weight"))
        put("model.norm.weight", norm("final_norm.weight"))
    assert not w, f"not set: {list(w)}"
    model.tie_weights()
    return model.float().train()


def numbers(values):
    return "&[" + ", ".join(f"{float(np.float32(v))!r}" for v in values) + "]"


print(f'''//! What `polity doctor` expects. Written by `tests/golden/make_doctor.py`, which says what the numbers are; not by hand.

use crate::doctor::Golden;

/// The tokens that the models read.
pub const IDS: [u32; {len(IDS)}] = {IDS};

/// Of each architecture.
pub const GOLDEN: [Golden; {len(MODELS)}] = [''')
for name, config in MODELS.items():
    config._attn_implementation = "eager"
    model = fill(tf.AutoModelForCausalLM.from_config(config), config)
    ids = torch.tensor([IDS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    losses, first = [], None
    for _ in range(STEPS):
        logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        chosen = logp.gather(1, ids[0, 1:, None])[:, 0]
        loss = -chosen.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
        if first is None:
            first = (chosen.tolist(), (-(logp.exp() * logp).sum(-1)).tolist(), norm)
        optimizer.step()
    keep = json.dumps({k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
                      | dict(model_type=config.model_type, architectures=[type(model).__name__]))
    print(f'''Golden {{ name: "{name}", config: r#"{keep}"#,
        logprobs: {numbers(first[0])}, entropies: {numbers(first[1])},
        grad_norm: {first[2]!r}, losses: {numbers(losses)} }},''')
print("];")
