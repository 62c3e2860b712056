"""Writes adamw.json: torch.optim.AdamW step by step, gradient clipping by global norm, and Transformers' schedules.

Made with torch 2.15.0 and transformers 5.23.0, CPU, one thread. Run: python make_adamw.py

`optimizer.cases[*]`: the same three small tensors and the same ten gradients under different settings. All inputs are
float32. Each case was run twice: in float32 (`steps[*].params`, `exp_avg`, `exp_avg_sq`: what a float32 trainer should give
up to rounding) and in float64 from the same inputs (`f64_params`, after the last step: what the formula gives).
  total_norm   what clip_grad_norm_ returns: the L2 norm of all gradients together, before clipping (float32)
  clip_factor  min(1, max_norm / (total_norm + 1e-6)), the factor every gradient is multiplied by; 1 where max_norm is null
  lr           the learning rate this step used, one for each group
The update (Loshchilov and Hutter 2019, as torch.optim.AdamW has it), t counted from 1:
  p <- p (1 - lr wd);  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
  p <- p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
`schedules[*]`: `lr_factor[i]` is what the base learning rate is multiplied by in optimiser step i, i = 0 first; there is one value
more than `total_steps`, the factor after the end. `warmup_steps_from_ratio`: how TrainingArguments turns a fractional
`warmup_steps` into steps.
"""
import torch
import transformers
from transformers import TrainingArguments, get_scheduler

from golden import versions, write_json

STEPS, SHAPES = 10, {"w": (3, 4), "norm": (4,), "bias": (2,)}


def inputs():
    generator = torch.Generator().manual_seed(20)
    draw = lambda shape, scale: torch.randn(shape, generator=generator) * scale
    params = {name: draw(shape, 0.5) for name, shape in SHAPES.items()}
    # Scales cross the clipping threshold in both directions; step 4 has a zero gradient, step 7 a tiny one (epsilon matters).
    scales = [0.1, 1.0, 3.0, 0.2, 0.0, 10.0, 0.5, 1e-7, 0.05, 2.0]
    grads = [{name: draw(shape, s) for name, shape in SHAPES.items()} for s in scales]
    return params, grads


def run(params, grads, dtype, groups, max_norm, schedule, **options):
    """Ten steps; `groups` is a list of (names, weight_decay, lr)."""
    live = {name: torch.nn.Parameter(p.to(dtype, copy=True)) for name, p in params.items()}
    optimizer = torch.optim.AdamW(
        [dict(params=[live[n] for n in names], weight_decay=decay, lr=lr) for names, decay, lr in groups], **options)
    scheduler = get_scheduler(schedule["name"], optimizer, schedule["warmup_steps"], schedule["total_steps"]) if schedule else None
    steps = []
    for grad in grads:
        for name, p in live.items():
            p.grad = grad[name].to(dtype, copy=True)  # clipping and stepping work in place
        everything = list(live.values())
        norm = torch.nn.utils.clip_grad_norm_(everything, float("inf") if max_norm is None else max_norm)
        factor = 1.0 if max_norm is None else torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        if scheduler:
            scheduler.step()
        state = lambda key: {name: optimizer.state[p][key].clone() for name, p in live.items()}
        steps.append(dict(total_norm=norm, clip_factor=factor, lr=rates, params={n: p.detach().clone() for n, p in live.items()},
                          exp_avg=state("exp_avg"), exp_avg_sq=state("exp_avg_sq")))
    return steps


def optimizer_cases():
    params, grads = inputs()
    every = list(SHAPES)
    torch_defaults = dict(betas=(0.9, 0.999), eps=1e-8)
    warm = dict(name="linear", warmup_steps=3, total_steps=10)
    cases = {
        "plain": dict(groups=[(every, 0.0, 1e-2)], max_norm=None, schedule=None, **torch_defaults),
        "decay": dict(groups=[(every, 0.1, 1e-2)], max_norm=None, schedule=None, **torch_defaults),
        "clip": dict(groups=[(every, 0.0, 1e-2)], max_norm=1.0, schedule=None, **torch_defaults),
        "decay_clip": dict(groups=[(every, 0.1, 1e-2)], max_norm=1.0, schedule=None, **torch_defaults),
        "betas_eps": dict(groups=[(every, 0.01, 1e-2)], max_norm=1.0, schedule=None, betas=(0.9, 0.95), eps=1e-5),
        "groups": dict(groups=[(["w"], 0.1, 1e-2), (["norm", "bias"], 0.0, 1e-3)], max_norm=1.0, schedule=None, **torch_defaults),
        "linear_warmup": dict(groups=[(every, 0.1, 1e-2)], max_norm=1.0, schedule=warm, **torch_defaults),
    }
    out = {}
    for name, case in cases.items():
        steps = run(params, grads, torch.float32, **case)
        exact = run(params, grads, torch.float64, **case)
        settings = dict(groups=[dict(names=n, weight_decay=d, lr=lr) for n, d, lr in case["groups"]], max_norm=case["max_norm"],
                        betas=case["betas"], eps=case["eps"], schedule=case["schedule"])
        out[name] = dict(settings=settings, steps=steps, f64_params=exact[-1]["params"])
    return dict(params=params, grads=grads, cases=out)


def schedules():
    total = 20
    table = [("constant", 0, {}), ("constant_with_warmup", 5, {}), ("linear", 0, {}), ("linear", 5, {}), ("cosine", 0, {}), ("cosine", 5, {}),
             ("cosine_with_min_lr", 0, dict(min_lr_rate=0.1)), ("cosine_with_min_lr", 5, dict(min_lr_rate=0.1)),
             ("cosine_with_min_lr", 5, dict(min_lr=0.25)), ("cosine", 5, dict(num_cycles=1.5)),
             ("cosine_warmup_with_min_lr", 5, dict(min_lr_rate=0.1)), ("polynomial", 5, dict(lr_end=1e-7, power=2.0)), ("inverse_sqrt", 5, {})]
    out = []
    for name, warmup, kwargs in table:
        # A base rate of 1 makes the rate the factor itself; `min_lr` is then a fraction of the base rate too.
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=kwargs or None)
        factors = [scheduler.get_last_lr()[0]]
        for _ in range(total):
            optimizer.step()
            scheduler.step()
            factors.append(scheduler.get_last_lr()[0])
        out.append(dict(name=name, warmup_steps=warmup, total_steps=total, kwargs=kwargs, lr_factor=factors))
    return out


def warmup_steps_from_ratio():
    steps = lambda ratio, total: TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True).get_warmup_steps(total)
    return [dict(warmup_steps=ratio, total_steps=total, steps=steps(ratio, total))
            for ratio, total in [(0.0, 20), (0.03, 20), (0.05, 20), (0.1, 20), (0.1, 25), (0.33, 100), (5, 20), (1, 20)]]


torch.set_num_threads(1)
write_json("adamw.json", dict(made_by="make_adamw.py: its docstring says what each field is", versions=versions(transformers),
                              optimizer=optimizer_cases(), schedules=schedules(), warmup_steps_from_ratio=warmup_steps_from_ratio()))
