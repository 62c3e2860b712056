"""Writes ppo_modern.json and ppo_modern.safetensors: one PPO update by TRL's last PPOTrainer, from fixed queries and responses.

Made with trl 1.9.2 (torch 2.15.0, transformers 5.23.0), CPU.
Run: python make_ppo.py TRL_DIR     (pip install --no-deps --target TRL_DIR trl==1.9.2)

`trainer.train()` itself runs, for one batch of eight. Replaced are: generation (returns the responses below, with scores from a full forward), the
shuffling of the data loader, and numpy.random.permutation (identity). Every number is read from the running method's own variables.

Models, all float32, from ../shared/models/stories260k: the policy is it; the reference is it with each `mlp.down_proj.weight` times 1.25 (exact to
repeat: one float32 product each); value and reward model are its trunk with the heads `value_head` and `reward_head` (f32 [1, 64]). AdamW,
betas (0.9, 0.999), epsilon 1e-8, no decay, constant rate 1e-3, no gradient clipping (TRL's PPO loop never clips), 4 epochs over the batch.

Shapes: b 8 sequences, r 12 response positions. Token 0 is the pad; the end of sequence is the full stop (`eos_token_id`). `response_tokens[i]` counts sequence i's tokens, its end included.
Position alignment: column t of every [b, r] tensor belongs to response token t. values[:, t] is the value model read at the row BEFORE token t (the row
that predicts it), so values[:, n] of a response of n < r tokens is read at its end-of-sequence token.

ppo_modern.safetensors (float32 run; the same names under `f64/` from a run in float64, in which only Transformers' RMSNorm and RoPE angles stay float32)
  queries i32 [b, q] left-padded with 0;  responses i32 [b, r] right-padded with 0
  shared: logprobs_raw (at temperature T + 1e-7), values_raw [b, r], scores_raw [b]: before any masking or penalty, base case
  CASE/scores [b]; CASE/logprobs, ref_logprobs, values, kl, rewards_unwhitened, rewards, advantages_unwhitened, advantages, returns [b, r]
  CASE/new_logprobs, CASE/ratio, CASE/vpred [k, m, r]: the k forward passes of the update in order, m sequences each
  CASE/grad_sample, CASE/param_sample [p, 16], CASE/grad_norm, CASE/update_norm [p]: for each parameter of ppo_modern.json `parameters` (policy's, then value
     model's), 16 elements evenly spread, flat index floor(i n / 16) for i in 0..16 with n the element count: the gradient that the first optimiser step saw
     and the value after the update; the gradient's L2 norm and that of the change of the parameter over the whole update
ppo_modern.json, for each case: the settings that differ from `defaults`, `micro_batches` (one object for each forward pass, `f64` within), `metrics` (what TRL logs)
  and `f64_spread`: how far float32 is from float64, relative to the largest element, for each tensor. An AdamW step divides a gradient by its own size, so
  rounding in a near-zero gradient is not small in `param_sample`: take tolerances from there.

How TRL 1.9.2 places things (positions count response tokens from 0; n = response_tokens, so the last token is at n - 1):
  1. A response that ends before the window does (n < r) gets one more step at n, the position after its end token: logprobs = ref_logprobs = 1.0 there (so kl = 0),
     value = the value model at the end token's own row, and the score is added there, not at n - 1. If n = r the score is added at n - 1.
  2. Hence delta at n is score - V(end row), and GAE runs over n + 1 steps; positions after that have value 0 and reward 0.
  3. `advantages` are whitened (unbiased variance + 1e-8, this process only) and used over the n response tokens; `returns` and the value loss over n + 1 steps.
     Reward whitening (shift_mean False) also counts n + 1 steps.
  4. approxkl = 0.5 mean(diff^2) and the ratio's mean divide by all b r positions, pads included (diff = 0, ratio = 1 there); entropy is a mean over all positions
     too, and at pads it is that of a forward over masked input: `entropy_response` is the mean over response tokens only. The metric val/ratio_var is the
     unbiased variance of the micro-batches' mean ratios.
  5. objective/kl sums kl over a sequence. objective/entropy sums -logprobs including the sentinel 1.0, so each pad adds -1.
  6. missing_eos_penalty is subtracted from the score of a response with no end token. A response whose last window position is the end token has it.
  7. A micro-batch's losses are means over its own tokens; with gradient accumulation those means are averaged, whatever their token counts.
  8. With num_mini_batches and gradient_accumulation_steps both above 1 the optimiser still steps once in gradient_accumulation_steps forward passes, not once a mini-batch
     (and the averages of statistics count the unused places as zeros); no case here combines them.
"""
import sys

sys.path.insert(0, sys.argv[1])
import itertools
import tempfile

import numpy
import torch
import transformers
import trl
import trl.experimental.ppo.ppo_trainer as ppo
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from golden import HERE, SHARED, versions, write_json

MODEL = SHARED / "models/stories260k"
WINDOW, PAD = 12, 0
EOS_TOKEN = "."  # the model gives its own </s> next to no probability; a full stop ends responses at ordinary ones
# Tokens of each response with its end, or None where the window fills with no end token. 12: the end token is the window's last.
LENGTHS = [12, 8, 11, 4, 1, 5, None, None]
PROMPTS = ["Once upon a time", "The little dog", "Lily", "One day, Tom and his mom went to the", "She was very happy", "In the park there was a big", "Ben said", "They all"]
DEFAULTS = dict(kl_coef=0.05, kl_estimator="k1", missing_eos_penalty=None, whiten_rewards=False, gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2,
                vf_coef=0.1, temperature=0.7, num_ppo_epochs=4, num_mini_batches=1, per_device_train_batch_size=8, gradient_accumulation_steps=1)
CASES = {
    "base": {},
    "k3": dict(kl_estimator="k3"),
    "penalty": dict(missing_eos_penalty=1.0),
    "whiten": dict(whiten_rewards=True),
    "k3_whiten_penalty": dict(kl_estimator="k3", whiten_rewards=True, missing_eos_penalty=1.0),
    "accumulate": dict(per_device_train_batch_size=4, gradient_accumulation_steps=2),
    "mini_batches": dict(num_mini_batches=2),
    "tight": dict(kl_coef=0.2, gamma=0.95, lam=0.9, cliprange=0.02, cliprange_value=0.02, vf_coef=0.5, temperature=1.0, missing_eos_penalty=1.0),
}
ROLLOUT = ("scores", "logprobs", "ref_logprobs", "values", "kl", "returns", "advantages", "rewards")


def heads():
    generator = torch.Generator().manual_seed(3)
    return {f"{kind}_head": torch.randn(1, 64, generator=generator, dtype=torch.float32) * 0.05 for kind in ("value", "reward")}


def language_model(dtype, scale=1.0):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for name, p in model.named_parameters():
        if name.endswith("mlp.down_proj.weight"):
            p.data *= scale
    return model.to(dtype)


def scalar_model(dtype, head):
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)
    model.score.weight.data = head.clone()
    return model.to(dtype)


def sample(model, query, eos, generator, count=128):
    """`count` responses of WINDOW tokens each, with pads after the first end token."""
    ids, alive = torch.tensor([query] * count), torch.ones(count, dtype=torch.bool)
    for _ in range(WINDOW):
        with torch.no_grad():
            logits = model(ids).logits[:, -1]
        logits[:, :3] = -torch.inf  # no pad, <s> or </s>
        token = torch.multinomial((logits / DEFAULTS["temperature"]).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, torch.where(alive[:, None], token, PAD)], 1)
        alive &= ids[:, -1] != eos
    return ids[:, len(query):]


def rollout_ids():
    """Queries as TRL's collator pads them, and for each a response sampled from the policy, the first that has the wanted length."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left", eos_token=EOS_TOKEN)
    eos = tokenizer.eos_token_id
    queries = [tokenizer(p).input_ids for p in PROMPTS]
    model, generator, responses = language_model(torch.float32), torch.Generator().manual_seed(4), []
    for query, length in zip(queries, LENGTHS, strict=True):
        found = sample(model, query, eos, generator)
        fits = (found != PAD).sum(1) == (length or WINDOW)
        responses.append(found[fits & ((found == eos).any(1) == (length is not None))][0])
    return tokenizer, queries, torch.stack(responses)


def copy(x):
    return x.detach().clone()


class Recorder:
    """Reads what PPOTrainer.train computes, through the calls it makes."""

    def __init__(self, trainer, queries, responses, settings):
        self.trainer, self.queries, self.responses = trainer, queries, responses
        self.temperature, self.accumulate = settings["temperature"] + 1e-7, settings["gradient_accumulation_steps"]
        self.rollout, self.raw, self.whitened, self.passes, self.grads, self.stats = {}, {}, [], [], {}, {}
        self.initial = {n: copy(p) for n, p in trainer.model.named_parameters()}
        self.inner_backward, trainer.accelerator.backward = trainer.accelerator.backward, self.backward
        self.inner_log, trainer.log = trainer.log, self.log

    def batch_generation(self, model, queries, *_):
        assert torch.equal(queries, self.queries)
        both = torch.cat((queries, self.responses), 1)
        with torch.no_grad():
            logits = ppo.forward(model, both, PAD).logits[:, queries.shape[1] - 1:-1] / self.temperature
        self.raw["logprobs_raw"] = ppo.selective_log_softmax(logits, self.responses)
        return both, logits

    def get_reward(self, model, *args, inner=ppo.get_reward):
        result = inner(model, *args)
        if model is self.trainer.reward_model:
            self.raw["scores_raw"] = copy(result[1])
        else:
            self.raw["values_raw"] = copy(result[0][:, args[-1] - 1:-1].squeeze(-1))
        return result

    def masked_whiten(self, values, mask, shift_mean=True, inner=ppo.masked_whiten):
        self.whitened.append((copy(values), mask.clone(), shift_mean))
        return inner(values, mask, shift_mean)

    def backward(self, loss):
        local = sys._getframe(1).f_locals
        assert local["self"] is self.trainer
        if not self.rollout:
            self.rollout = {name: copy(local[name]) for name in ROLLOUT} | {"padding_mask": local["padding_mask"].clone()}
            assert torch.equal(local["responses"], self.responses)
        rows = [int(i) for i in local["micro_batch_inds"]]
        mask = ~self.rollout["padding_mask"][rows]
        log_p = local["logits"].detach().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        self.passes.append(dict(rows=rows, loss=loss.item(), **{name: copy(local[name]) for name in ("new_logprobs", "ratio", "vpred")},
                                entropy_response=entropy[mask].mean().item()))
        self.inner_backward(loss)
        if len(self.passes) == self.accumulate:
            self.grads = {n: copy(p.grad) for n, p in self.trainer.model.named_parameters()}

    def log(self, metrics):
        local = sys._getframe(1).f_locals
        self.metrics = {k: v for k, v in metrics.items() if k != "eps"}
        self.stats = {name: local[f"{name}_stats"].flatten().tolist() for name in ("approxkl", "pg_clipfrac", "pg_loss", "vf_loss", "vf_clipfrac", "entropy", "ratio")}
        self.inner_log(metrics)


def spread_elements(x):
    flat = x.flatten()
    return flat[torch.arange(16) * flat.numel() // 16]


def run(case, dtype, tokenizer, queries, responses):
    settings = DEFAULTS | CASES[case]
    torch.set_default_dtype(dtype)
    with tempfile.TemporaryDirectory() as out:
        data = Dataset.from_list([dict(input_ids=q) for q in queries])
        args = ppo.PPOConfig(output_dir=out, total_episodes=len(queries), learning_rate=1e-3, lr_scheduler_type="constant", response_length=WINDOW,
                             stop_token="eos", num_sample_generations=0, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1,
                             save_strategy="no", disable_tqdm=True, seed=0, **settings)
        head = heads()
        trainer = ppo.PPOTrainer(args=args, processing_class=tokenizer, model=language_model(dtype), ref_model=language_model(dtype, 1.25),
                                 reward_model=scalar_model(dtype, head["reward_head"]), value_model=scalar_model(dtype, head["value_head"]), train_dataset=data,
                                 eval_dataset=data)
        trainer.dataloader = DataLoader(data, batch_size=len(queries), collate_fn=trainer.data_collator)
        padded = next(iter(trainer.dataloader))["input_ids"]
        recorder = Recorder(trainer, padded, responses, settings)
        names = ("batch_generation", "get_reward", "masked_whiten")
        originals = {name: getattr(ppo, name) for name in names}
        permutation, numpy.random.permutation = numpy.random.permutation, numpy.arange
        for name in names:
            setattr(ppo, name, getattr(recorder, name))
        try:
            trainer.train()
        finally:
            numpy.random.permutation = permutation
            for name in names:
                setattr(ppo, name, originals[name])
        torch.set_default_dtype(torch.float32)
    return recorder, padded


def gather(recorder):
    """The case's tensors; the unwhitened ones are what masked_whiten was given."""
    raw_rewards, raw_advantages = recorder.rollout["rewards"], recorder.whitened[-1][0]
    if len(recorder.whitened) == 2:
        raw_rewards = recorder.whitened[0][0]
    out = {name: recorder.rollout[name] for name in ROLLOUT} | {"rewards_unwhitened": raw_rewards, "advantages_unwhitened": raw_advantages}
    out |= {name: torch.stack([p[name] for p in recorder.passes]) for name in ("new_logprobs", "ratio", "vpred")}
    # Not the wrapper's own alias of the value model's trunk.
    names = [n for n in recorder.initial if not n.startswith("critic_backbone.")]
    final = dict(recorder.trainer.model.named_parameters())
    out["grad_sample"] = torch.stack([spread_elements(recorder.grads[n]) for n in names])
    out["param_sample"] = torch.stack([spread_elements(copy(final[n])) for n in names])
    out["grad_norm"] = torch.stack([recorder.grads[n].norm() for n in names])
    out["update_norm"] = torch.stack([(final[n].detach() - recorder.initial[n]).norm() for n in names])
    return out, names


def micro_batches(case, recorder):
    """What TRL keeps of each forward pass, with the pass's place in the update."""
    settings = DEFAULTS | CASES[case]
    places = itertools.product(range(4), range(settings["num_mini_batches"]), range(settings["gradient_accumulation_steps"]))
    return [dict(epoch=e, mini_batch=m, accumulation=g, rows=p["rows"], loss=p["loss"], entropy_response=p["entropy_response"],
                 **{k: v[i] for k, v in recorder.stats.items()}) for i, ((e, m, g), p) in enumerate(zip(places, recorder.passes, strict=True))]


def main():
    tokenizer, queries, responses = rollout_ids()
    tensors, cases = heads(), {}
    for case in CASES:
        record, recorders = {}, {}
        for prefix, dtype in (("", torch.float32), ("f64/", torch.float64)):
            recorders[prefix], padded = run(case, dtype, tokenizer, queries, responses)
            record[prefix], names = gather(recorders[prefix])
            tensors |= {f"{prefix}{case}/{k}": v for k, v in record[prefix].items()}
            if case == "base":
                tensors |= {f"{prefix}{k}": v for k, v in recorders[prefix].raw.items()}
        spread = {k: ((v.double() - record["f64/"][k]).abs().max() / record["f64/"][k].abs().max()).item() for k, v in record[""].items()}
        passes = [one | {"f64": two} for one, two in zip(micro_batches(case, recorders[""]), micro_batches(case, recorders["f64/"]), strict=True)]
        cases[case] = dict(settings=CASES[case], micro_batches=passes, metrics=recorders[""].metrics, f64_metrics=recorders["f64/"].metrics, f64_spread=spread)
        print(case, {k: f"{v:.0e}" for k, v in spread.items()})
    tensors |= {"queries": padded.int(), "responses": responses.int()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, HERE / "ppo_modern.safetensors")
    write_json("ppo_modern.json", dict(made_by="make_ppo.py: its docstring says what each field is", versions=versions(trl, transformers), defaults=DEFAULTS,
                                       learning_rate=1e-3, eos_token_id=tokenizer.eos_token_id, pad_token_id=PAD, response_tokens=[n or WINDOW for n in LENGTHS], has_eos=[n is not None for n in LENGTHS],
                                       query_tokens=[len(q) for q in queries], parameters=names, cases=cases))


torch.set_num_threads(1)
main()
