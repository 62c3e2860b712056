"""Writes ppo_classic.json: the pieces of TRL's classic PPOTrainer, the last with the adaptive KL controller.

Made with trl 0.11.4's source running on torch 2.15.0, CPU. Run: python make_ppo_classic.py TRL_DIR     (pip install --no-deps --target TRL_DIR trl==0.11.4)

That package no longer imports beside today's transformers, so this script takes single functions and methods out of its files, by name, and runs them as they
are (annotations and decorators dropped). Nothing is transcribed. In float64 from float32 inputs, except `moments`, which TRL computes in float32.

All rows are ragged: entry i of a list belongs to sequence i and has one number for each response token. TRL itself works on padded rows: `LEAD` masked positions
(the prompt), the response, then masked positions up to `window`. Masked positions hold junk here, to show that results do not depend on them, and where they do.
  kl_controller      value after each update; `current` is the batch mean of the per-sequence SUM of kl, n_steps = batch_size * processes.
                     err = clip(current / target - 1, -0.2, 0.2);  value *= 1 + err n_steps / horizon
  rewards[KIND]      kl per token, non_score_reward = -value kl, reward (score on the last response token). kl: logp - ref; abs; mse: 0.5 (logp - ref)^2;
                     full: sum_v p (log p - log p_ref) from the two whole distributions in `inputs.full`
  stats              what record_step_stats makes of the kind "kl" batch (std_scores is unbiased; objective/entropy is the mean sequence sum of -logp)
  advantages[CASE]   GAE, then whitening over the response tokens (unbiased variance + 1e-8). `returns` are before whitening.
  loss[CASE]         one mini-batch: what loss() returns (the second value is vf_coef * vf_loss), its statistics, and the gradient of policy + value
                     with respect to the new log-probs and value predictions. `skipped`: the mean ratio exceeded ratio_threshold, all losses times 0
  early_stop         stop when policykl > 1.5 target_kl and early_stopping; policykl = mean over tokens of old - new log-prob
  moments            RunningMoments over batches of scores, and the scores that go into the rewards under (scaling), (scaling, norm), (scaling, norm, clip), (clip)

Surprises, worth knowing before copying semantics:
  1. whiten_rewards does not mask again after whitening: positions after a response's end get the whitened zero, mean - mean / std, and GAE carries it back into the
     response. So the result depends on how far rows are padded on the right (with left padding every row ends at the last position, and nothing leaks).
     `advantages.whiten` shows it: `window` - length positions follow each response. `advantages.whiten_equal` has responses of one length, where every
     implementation must agree. `rewards` are those before whitening in both.
  2. use_score_scaling raises in 0.11.4 (RunningMoments.std is a float, step() calls .to on it; see moments.raises). The values here come from step()'s own lines with
     mean and std handed over as tensors, which is what they were written for. The divisor is std + float32 epsilon, with the running unbiased std.
  3. RunningMoments starts with count 1e-24, so the first batch replaces mean 0 and std 1. It keeps the biased variance in `var`, the unbiased root in `std`.
  4. The controller's `value` used for a batch's rewards is the one before that batch's update.
"""
import ast
import sys
import time
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional
from torch.nn.utils.rnn import pad_sequence

from golden import versions, write_json

LEAD, VOCAB, LENGTHS = 2, 7, [5, 3, 1, 6]
F64 = torch.float64


def take(path, names, namespace):
    """Compiles the functions, classes and constants called `names` of one source file into `namespace`."""
    found, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree):
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else getattr(node, "name", None)
        if name not in names or name in found or not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign)):
            continue
        found.add(name)
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef):
                inner.returns, inner.decorator_list = None, [d for d in inner.decorator_list if "classmethod" in ast.dump(d) and inner is not node]
                for argument in inner.args.args:
                    argument.annotation = None
        exec(compile(ast.Module([node], []), str(path), "exec"), namespace)
    assert found == set(names), set(names) - found


def load(directory):
    space = {"torch": torch, "np": numpy, "F": torch.nn.functional, "warnings": warnings, "pad_sequence": pad_sequence, "Mapping": Mapping, "dataclass": dataclass,
             "Accelerator": object, "time": time}
    root = Path(directory) / "trl"
    take(root / "core.py", ["WANDB_PADDING", "masked_mean", "masked_var", "masked_whiten", "clip_by_value", "entropy_from_logits", "flatten_dict", "logprobs_from_logits"], space)
    take(root / "trainer/utils.py", ["AdaptiveKLController", "FixedKLController", "RunningMoments"], space)
    take(root / "trainer/ppo_trainer.py", ["compute_rewards", "_kl_penalty", "compute_advantages", "loss", "_early_stop", "record_step_stats", "step"], space)
    return types.SimpleNamespace(**space)


def kl_controller(trl):
    generator = torch.Generator().manual_seed(1)
    cases = {}
    for name, (init, target, horizon, n_steps) in {"defaults": (0.2, 6.0, 10000, 128), "fast": (0.05, 4.0, 500, 256)}.items():
        controller = trl.AdaptiveKLController(init, target, horizon)
        # A slow wave across the target with noise, so that both clips, the linear middle and negative KL occur.
        wave = target * (1 + 1.2 * torch.sin(torch.arange(50, dtype=F64) / 6)) + 0.3 * torch.randn(50, generator=generator, dtype=F64)
        wave[20], wave[21] = target, -0.5
        values = []
        for current in wave.tolist():
            controller.update(current, n_steps)
            values.append(controller.value)
        cases[name] = dict(init_kl_coef=init, target=target, horizon=horizon, n_steps=n_steps, current=wave, value=values)
    return cases


class Padded:
    """Ragged rows as TRL's padded tensors, junk where the mask is 0."""

    def __init__(self, lengths):
        self.lengths, self.window = lengths, LEAD + max(lengths)
        self.mask = torch.tensor([[0] * LEAD + [1] * n + [0] * (self.window - LEAD - n) for n in lengths])

    def __call__(self, rows, junk=0.0):
        out = torch.full((len(rows), self.window, *rows[0].shape[1:]), junk, dtype=rows[0].dtype)
        out[self.mask.bool()] = torch.cat(rows)
        return out

    def ragged(self, x):
        return list(x[self.mask.bool()].split(self.lengths))


def draw(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape, scale=1.0: (torch.randn(*shape, generator=generator) * scale)
    old_full = [normal(n, VOCAB, scale=1.5).log_softmax(-1) for n in lengths]
    ref_full = [(x + normal(*x.shape, scale=0.4)).log_softmax(-1) for x in old_full]
    ids = [torch.randint(VOCAB, (n,), generator=generator) for n in lengths]
    pick = lambda full: [x.gather(-1, i[:, None])[:, 0] for x, i in zip(full, ids)]
    values = [normal(n, scale=0.7) for n in lengths]
    return dict(ids=ids, full=dict(logp=old_full, ref_logp=ref_full), logp=pick(old_full), ref_logp=pick(ref_full), values=values, scores=normal(len(lengths)),
                new_logits=[x + normal(*x.shape, scale=0.3) for x in old_full], vpreds=[x + normal(len(x), scale=0.3) for x in values])


def wide(rows):
    return [x.to(F64) for x in rows]


def trainer(trl, kl_coef=0.2, **config):
    defaults = dict(kl_penalty="kl", gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, ratio_threshold=10.0, whiten_rewards=False,
                    early_stopping=False, target_kl=1.0)
    stub = types.SimpleNamespace(config=types.SimpleNamespace(**defaults | config), kl_ctl=trl.FixedKLController(kl_coef), is_distributed=False,
                                 optimizer=types.SimpleNamespace(zero_grad=lambda: None))
    stub._kl_penalty = lambda *args: trl._kl_penalty(stub, *args)
    return stub


def rewards(trl, data, pad):
    out, rows = {}, {}
    for kind in ("kl", "abs", "mse", "full"):
        source = data["full"] if kind == "full" else data
        stub = trainer(trl, kl_penalty=kind)
        rows[kind] = trl.compute_rewards(stub, data["scores"].to(F64), pad(wide(source["logp"]), -0.5), pad(wide(source["ref_logp"]), -0.7), pad.mask)
        out[kind] = dict(zip(("reward", "non_score_reward", "kl"), map(pad.ragged, rows[kind])))
    _, non_score, kls = rows["kl"]
    none = [torch.zeros(1)] * 2  # lengths for statistics that are not kept
    stats = trl.record_step_stats(None, kl_coef=0.2, masks=pad.mask, kls=kls, logprobs=pad(wide(data["logp"]), -0.5), ref_logprobs=pad(wide(data["ref_logp"]), -0.7),
                                  non_score_reward=non_score, scores=data["scores"].to(F64), queries=none, responses=none,
                                  train_stats={"val/error": torch.ones(1), "returns/var": torch.ones(1)})
    keep = ("objective/kl", "objective/kl_dist", "objective/entropy", "ppo/mean_non_score_reward", "ppo/mean_scores", "ppo/std_scores")
    return dict(kl_coef=0.2, kinds=out), {k: stats[k] for k in keep}


def advantages(trl):
    cases = {}
    for name, lengths, config in [("default", LENGTHS, {}), ("gamma_lam", LENGTHS, dict(gamma=0.9, lam=0.8)), ("whiten", LENGTHS, dict(whiten_rewards=True)),
                                  ("equal", [4, 4, 4], {}), ("whiten_equal", [4, 4, 4], dict(whiten_rewards=True))]:
        data, pad = draw(2, lengths), Padded(lengths)
        stub = trainer(trl, **config)
        reward, _, _ = trl.compute_rewards(stub, data["scores"].to(F64), pad(wide(data["logp"]), -0.5), pad(wide(data["ref_logp"]), -0.7), pad.mask)
        _, advantage, returns = trl.compute_advantages(stub, pad(wide(data["values"]), 3.0), reward, pad.mask)
        cases[name] = dict(settings=config, lengths=lengths, window=max(lengths), values=data["values"], rewards=pad.ragged(reward), advantages=pad.ragged(advantage),
                           returns=pad.ragged(returns))
    return cases


def losses(trl, data, pad, advantage, returns):
    cases = {}
    for name, config in {"default": {}, "tight": dict(cliprange=0.05, cliprange_value=0.02, vf_coef=0.5), "skipped": dict(ratio_threshold=0.5)}.items():
        logits = pad(wide(data["new_logits"]), 1.0)
        new = [x.log_softmax(-1).gather(-1, i[:, None])[:, 0].float().to(F64).requires_grad_() for x, i in zip(wide(data["new_logits"]), data["ids"])]
        vpreds = [x.to(F64, copy=True).requires_grad_() for x in data["vpreds"]]
        stub = trainer(trl, **config)
        old = pad(wide(data["logp"]), -0.5)
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            policy, value, stats = trl.loss(stub, old, pad(wide(data["values"]), 3.0), logits, pad(vpreds, 2.0), pad(new, -0.9), pad.mask, pad(advantage, 9.0),
                                            pad(returns, 9.0))
        (policy + value).backward()
        stats = {k: v for k, v in stats.items() if k not in ("policy/advantages", "policy/ratio")} | {"policy/ratio": pad.ragged(stats["policy/ratio"])}
        cases[name] = dict(settings=config, policy_loss=policy, weighted_value_loss=value, warned=len(raised) > 0, stats=stats, d_new_logp=[x.grad for x in new],
                           d_vpreds=[x.grad for x in vpreds])
    return dict(inputs=dict(old_logp=data["logp"], new_logp=[x.detach() for x in new], new_logits=data["new_logits"], values=data["values"], vpreds=data["vpreds"],
                            advantages=advantage, returns=returns), cases=cases)


def early_stop(trl):
    rows = [(True, 1.0, 1.4), (True, 1.0, 1.5), (True, 1.0, 1.6), (False, 1.0, 9.0), (True, 0.1, 0.2), (True, 0.1, -3.0)]
    return [dict(early_stopping=on, target_kl=target, policykl=kl, stop=bool(trl._early_stop(trainer(trl, early_stopping=on, target_kl=target), kl))) for on, target, kl in rows]


class Reached(Exception):
    """Ends step() after its score handling, carrying the scores."""


def moments(trl):
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(n, generator=generator) * scale + shift for n, scale, shift in [(8, 1.0, 0.0), (4, 0.1, 5.0), (16, 2.0, -1.0), (2, 1.0, 0.0), (8, 30.0, 100.0), (8, 1e-3, 0.5)]]
    running = trl.RunningMoments(types.SimpleNamespace(use_distributed=False))
    settings = {"none": {}, "scaling": dict(use_score_scaling=True), "scaling_norm": dict(use_score_scaling=True, use_score_norm=True),
                "scaling_norm_clip": dict(use_score_scaling=True, use_score_norm=True, score_clip=0.5), "clip": dict(score_clip=0.5)}
    out, raises = [], None

    def step_scores(scores, options, moments):
        """What step() makes of the scores, stopped where it goes on to the model."""
        def stop(*_):
            raise Reached(sys._getframe(1).f_locals["scores"])

        stub = types.SimpleNamespace(config=types.SimpleNamespace(**dict(batch_size=len(scores), use_score_scaling=False, use_score_norm=False, score_clip=None) | options),
                                     _step_safety_checker=lambda _, *rest: rest, current_device="cpu", running=moments, prepare_model_inputs=stop)
        try:
            trl.step(stub, None, None, scores.tolist())
        except Reached as end:
            return end.args[0]

    for scores in batches:
        batch_mean, batch_std = running.update(scores)
        as_tensors = types.SimpleNamespace(update=lambda _: (batch_mean, batch_std), mean=torch.tensor(running.mean), std=torch.tensor(running.std))
        if raises is None:
            try:
                step_scores(scores, settings["scaling"], types.SimpleNamespace(update=lambda _: (0, 0), mean=running.mean, std=running.std))
            except AttributeError as error:
                raises = f"AttributeError: {error}"
        out.append(dict(scores=scores, batch_mean=batch_mean, batch_std=batch_std, mean=running.mean, std=running.std, var=running.var, count=running.count,
                        shaped={name: step_scores(scores, options, as_tensors) for name, options in settings.items()}))
    return dict(raises=raises, score_clip=0.5, batches=out)


def main(directory):
    trl = load(directory)
    data, pad = draw(2, LENGTHS), Padded(LENGTHS)
    reward, stats = rewards(trl, data, pad)
    gae = advantages(trl)
    write_json("ppo_classic.json", dict(
        made_by="make_ppo_classic.py: its docstring says what each field is", versions=versions() | {"trl": "0.11.4"}, kl_controller=kl_controller(trl),
        inputs={k: data[k] for k in ("scores", "logp", "ref_logp", "full", "ids")}, rewards=reward, stats=stats, advantages=gae,
        loss=losses(trl, data, pad, gae["default"]["advantages"], gae["default"]["returns"]), early_stop=early_stop(trl), moments=moments(trl)))


torch.set_num_threads(1)
main(sys.argv[1])
