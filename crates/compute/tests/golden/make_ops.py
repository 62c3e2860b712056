"""Writes ops.safetensors: what PyTorch and Transformers make of small inputs, for tests/ops_golden.rs.

    python make_ops.py          needs torch, transformers, safetensors; run again, it writes the same numbers

Inputs are f32. Results are computed in f64 and stored as f32, so that a difference is the tested code's own
rounding; rope (whose f32 angle is part of the model) and AdamW (whose f32 steps are) are computed in f32. Where
Transformers has the operation, its f32 result is first compared with the f64 one: the formula is theirs.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, eager_attention_forward
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as apply_partial_rotary
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

torch.manual_seed(20)
stored = {}


def store(prefix, **tensors):
    for name, tensor in tensors.items():
        tensor = torch.as_tensor(tensor).detach()
        dtype = torch.float32 if tensor.is_floating_point() else torch.int64
        stored[f"{prefix}.{name}"] = tensor.to(dtype).contiguous().clone()


def f32(number):
    """The number as the tested function gets it."""
    return float(torch.tensor(number, dtype=torch.float32))


def rand(*shape, scale=1.0):
    """An f32-representable f64 tensor that collects a gradient."""
    return (torch.randn(*shape, dtype=torch.float32) * scale).double().requires_grad_()


def agrees(got, expect, tolerance=2e-6):
    error = (got.double() - expect).abs().max() / expect.abs().max()
    assert error < tolerance, f"Transformers and the formula differ by {error:.1e}"


def gradients(output, d_output, **inputs):
    grads = torch.autograd.grad(output, list(inputs.values()), d_output)
    return {f"d_{name}": grad for name, grad in zip(inputs, grads)}


def linear():
    x, w, b, d_y = rand(3, 5), rand(37, 5), rand(37), rand(3, 37)
    y = F.linear(x, w, b)
    store("linear", x=x, w=w, b=b, y=y, d_y=d_y, **gradients(y, d_y, x=x, w=w, b=b))


def norm():
    x, d_y = rand(3, 16, scale=2.0), rand(3, 16)
    for name, eps in [("rms", 1e-6), ("rms_plus_one", 1e-6), ("layer", 1e-5)]:
        w, b = rand(16), rand(16)
        if name == "rms":
            y, module = F.rms_norm(x, (16,), w, eps), LlamaRMSNorm(16, eps)
        elif name == "rms_plus_one":
            y, module = F.rms_norm(x, (16,), 1 + w, eps), Gemma2RMSNorm(16, eps)
        else:
            y, module = F.layer_norm(x, (16,), w, b, eps), torch.nn.LayerNorm(16, eps)
            module.bias.data = b.detach().float()
        module.weight.data = w.detach().float()
        agrees(module(x.float()), y)
        wanted = dict(x=x, w=w, b=b) if name == "layer" else dict(x=x, w=w)
        store(f"norm.{name}", **wanted, eps=[eps], y=y, d_y=d_y, **gradients(y, d_y, **wanted))


def cut(qkv, h, g, d):
    """[n, (h+2g)*d] into q [1, h, n, d], k and v [1, g, n, d], as Transformers wants them."""
    parts = qkv.split([h * d, g * d, g * d], dim=-1)
    return [part.unflatten(-1, (-1, d)).transpose(0, 1).unsqueeze(0) for part in parts]


def join(*parts):
    return torch.cat([part.squeeze(0).transpose(0, 1).flatten(1) for part in parts], dim=-1)


def rope():
    h, g, position = 3, 1, torch.tensor([0, 1, 5, 511, 4097, 100003])
    for name, d, rotary in [("full", 8, 8), ("partial", 16, 4)]:
        config = LlamaConfig(hidden_size=rotary, num_attention_heads=1, head_dim=rotary)
        embedding = LlamaRotaryEmbedding(config)
        qkv = rand(len(position), (h + 2 * g) * d).detach().float().requires_grad_()
        q, k, v = cut(qkv, h, g, d)
        cos, sin = embedding(qkv, position.unsqueeze(0))
        apply = apply_rotary_pos_emb if rotary == d else apply_partial_rotary
        y = join(*apply(q, k, cos, sin), v)
        d_y = torch.randn_like(y)
        store(
            f"rope.{name}", position=position, inv_freq=embedding.inv_freq, qkv=qkv, y=y, d_y=d_y,
            **gradients(y, d_y, qkv=qkv),
        )


def qk_norm():
    h, g, d, n, eps = 4, 2, 6, 3, 1e-6
    for name, module_class in [("per_head", Qwen3RMSNorm), ("whole", Olmo2RMSNorm)]:
        per_head = name == "per_head"
        qkv, w_q, w_k = rand(n, (h + 2 * g) * d), rand(d if per_head else h * d), rand(d if per_head else g * d)
        parts = qkv.split([h * d, g * d, g * d], dim=-1)
        normed = []
        for part, w in zip(parts, (w_q, w_k)):
            x = part.unflatten(-1, (-1, d)) if per_head else part
            module = module_class(len(w), eps)
            module.weight.data = w.detach().float()
            out = F.rms_norm(x, w.shape, w, eps)
            agrees(module(x.float()), out)
            normed.append(out.flatten(1))
        y = torch.cat([*normed, parts[2]], dim=-1)
        d_y = rand(*y.shape)
        store(f"qk_norm.{name}", qkv=qkv, w_q=w_q, w_k=w_k, eps=[eps], y=y, d_y=d_y,
              **gradients(y, d_y, qkv=qkv, w_q=w_q, w_k=w_k))


def attention_row(qkv, h, g, d, scale, softcap, window):
    """One row on its own, f64: [t, (h+2g)*d] to [t, h*d]."""
    q, k, v = cut(qkv, h, g, d)
    k, v = (x.repeat_interleave(h // g, dim=1) for x in (k, v))
    score = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    at = torch.arange(len(qkv))
    sees = sliding_window_causal_mask_function(window) if window else causal_mask_function
    seen = sees(0, 0, at[:, None], at[None, :])
    score = score.masked_fill(~seen, -math.inf)
    out = join(torch.softmax(score, -1) @ v)

    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    module = SimpleNamespace(num_key_value_groups=h // g, training=False)
    theirs, _ = eager_attention_forward(module, *(x.float() for x in cut(qkv, h, g, d)), mask, scaling=scale,
                                        softcap=softcap)
    agrees(theirs.squeeze(0).flatten(1), out)
    return out


def attention():
    # A prompt of 5 with branches of 4 and 3, the first with a branch of 2 of its own; and a row of 6.
    segments = [(5, -1), (4, 0), (3, 0), (2, 1), (6, -1)]
    starts, n = [], 0
    for length, _ in segments:
        starts.append(n)
        n += length

    def path(segment):
        length, parent = segments[segment]
        own = list(range(starts[segment], starts[segment] + length))
        return own if parent < 0 else path(parent) + own

    store("attention", segment_len=[s[0] for s in segments], segment_parent=[s[1] for s in segments])
    for name, h, g, d, scale, softcap, window in [
        ("grouped", 4, 2, 8, 8**-0.5, None, None),
        ("softcap", 3, 1, 4, 0.7, 1.5, None),
        ("window", 2, 2, 4, 0.5, None, 3),
        ("softcap_window", 4, 1, 4, 0.9, 2.0, 4),
    ]:
        qkv, scale = rand(n, (h + 2 * g) * d, scale=1.3), f32(scale)
        rows = torch.empty(n, h * d, dtype=torch.float64)
        for segment, (length, _) in enumerate(segments):
            at = path(segment)
            out = attention_row(qkv[at], h, g, d, scale, softcap, window)
            rows = rows.index_copy(0, torch.tensor(at[-length:]), out[-length:])
        d_out = rand(n, h * d)
        store(f"attention.{name}", shape=[h, g, d], scale=[scale], softcap=[softcap or 0.0], window=[window or 0],
              qkv=qkv, out=rows, d_out=d_out, **gradients(rows, d_out, qkv=qkv))


def activation():
    for name, act, gated in [
        ("gated_silu", "silu", True),
        ("gated_gelu_tanh", "gelu_pytorch_tanh", True),
        ("gelu", "gelu", False),
        ("gelu_tanh", "gelu_new", False),
    ]:
        up = rand(3, 16 if gated else 8, scale=2.5)
        f64 = {"silu": F.silu, "gelu": F.gelu}.get(act, lambda x: F.gelu(x, approximate="tanh"))
        y = f64(up[:, :8]) * up[:, 8:] if gated else f64(up)
        theirs = ACT2FN[act](up.float()[:, :8])
        agrees(theirs * up.float()[:, 8:] if gated else theirs, y)
        d_y = rand(3, 8)
        store(f"activation.{name}", up=up, y=y, d_y=d_y, **gradients(y, d_y, up=up))


def logprob():
    rows, v = 4, 50
    z, token, d_logprob, d_entropy = rand(rows, v, scale=3.0), torch.tensor([7, 0, 49, 20]), rand(rows), rand(rows)
    other = rand(rows, v, scale=3.0)
    store("logprob", z=z, token=token, d_logprob=d_logprob, d_entropy=d_entropy, other=other)
    for name, softcap, temperature in [
        ("plain", None, 1.0), ("warm", None, 1.5), ("cool", None, 0.7), ("softcap", 4.0, 1.0), ("both", 4.0, 0.7),
    ]:
        def distribution(z):
            capped = z if softcap is None else softcap * torch.tanh(z / softcap)
            return capped / f32(temperature)

        log_p, log_q = (torch.log_softmax(distribution(x), -1) for x in (z, other))
        chosen = log_p.gather(-1, token[:, None]).squeeze(-1)
        entropy = torch.distributions.Categorical(logits=distribution(z), validate_args=False).entropy()
        (d_z,) = torch.autograd.grad((chosen * d_logprob + entropy * d_entropy).sum(), z)
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        store(f"logprob.{name}", softcap=[softcap or 0.0], temperature=[temperature], logprob=chosen, entropy=entropy,
              lse=torch.logsumexp(distribution(z), -1), d_z=d_z, kl=kl)


def embed():
    ids, position, scale = torch.tensor([3, 39, 3, 0, 39, 3]), torch.tensor([0, 1, 2, 3, 0, 1]), f32(6.0**0.5)
    table, position_table, d_x = rand(40, 6), rand(5, 6), rand(6, 6)
    x = F.embedding(ids, table) * scale + F.embedding(position, position_table)
    store("embed", ids=ids, position=position, scale=[scale], table=table, position_table=position_table, x=x, d_x=d_x,
          **gradients(x, d_x, table=table, position_table=position_table))


def scalar_head():
    x, w, row, d_out = rand(5, 16), rand(1, 16), torch.tensor([4, 0, 4, 2]), rand(4)
    out = F.linear(x, w)[row].squeeze(-1)
    store("scalar_head", x=x, w=w, row=row, out=out, d_out=d_out, **gradients(out, d_out, x=x, w=w))


def adamw():
    for name, lr, betas, eps, decay, clip in [
        ("default", 1e-3, (0.9, 0.999), 1e-8, 0.01, None),
        ("strong", 3e-2, (0.8, 0.95), 1e-3, 0.3, None),
        ("clipped", 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0),
    ]:
        w = torch.nn.Parameter(torch.randn(32))
        start, grads, after = w.detach().clone(), torch.randn(10, 32) * torch.logspace(-3, 1, 32), []
        optimizer = torch.optim.AdamW([w], lr=lr, betas=betas, eps=eps, weight_decay=decay)
        for grad in grads:
            w.grad = grad.clone()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([w], clip)
            optimizer.step()
            after.append(w.detach().clone())
        state = optimizer.state[w]
        store(f"adamw.{name}", w=start, grads=grads, after=torch.stack(after), m=state["exp_avg"],
              v=state["exp_avg_sq"])
        # In f64, as Python passes them.
        coefficients = torch.tensor([lr, *betas, eps, decay, clip or 0.0], dtype=torch.float64)
        stored[f"adamw.{name}.coefficients"] = coefficients


for make in [linear, norm, rope, qk_norm, attention, activation, logprob, embed, scalar_head, adamw]:
    make()
path = Path(__file__).with_name("ops.safetensors")
save_file(stored, path, metadata={"torch": torch.__version__, "transformers": transformers.__version__})
print(f"{len(stored)} tensors, {path.stat().st_size} bytes")
