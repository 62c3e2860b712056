"""Writes trl_parity.json and trl_parity.safetensors: eight training steps of TRL's SFT, reward and DPO trainers on real comparisons.

Made with trl 1.16.0 (torch 2.15.0, transformers 5.23.0), CPU. Run: python make_trl_parity.py
Model: ../shared/models/stories260k, float32. Data: the first 64 pairs of ../shared/data/preferences/hh_harmless_base_test.jsonl.gz; the prompt is the
transcript up to and including the last "\\n\\nAssistant:", the completion is the rest (it starts with a space). Rows in file order (sequential sampler).
AdamW (0.9, 0.999), epsilon 1e-8, no weight decay, constant learning rate 1e-3, no warm-up, batches of 8 rows or pairs, 8 steps, gradient norm
clipped to 1, no dropout, no gradient checkpointing; everything else as TRL has it.

trl_parity.safetensors
  prompt_ids, chosen_ids, rejected_ids                u16, the 64 rows one after another, as TRL tokenised them (before any truncation)
  prompt_offsets, chosen_offsets, rejected_offsets    i32 [65]: row i is ids[offsets[i]..offsets[i+1]]
  score.weight                                        f32 [1, 64], the reward model's initial head; the trunk is stories260k
trl_parity.json
  tokenisation       what TRL did to the text, checked by this script
  runs.NAME.steps    one object a step:
    rows             indices of the pairs in the batch, in order, found by comparing the batch's ids
    tokens           unpadded tokens of the batch; trained_tokens: tokens that carry loss (completion; none for the reward model)
    loss             as the trainer's compute_loss returned it, before it is rounded for the log
    grad_norm        L2 norm of the whole gradient before clipping
    ...              every metric that TRL logs, under TRL's names (DPO's logps are sums over the response, averaged over pairs;
                     `num_tokens` is a running total of unpadded tokens)
  runs.NAME.f64_loss the loss of each step when the same trainer runs the same model in float64 (RMSNorm, RoPE angles and TRL's log-prob head stay
                     float32): its distance from `loss` is what rounding alone does, and so the least tolerance that makes sense
  runs.NAME.params   each parameter after the last step: L2 norm and first four values
Two lengths. NAME alone has max_length 2048: no pair is dropped or cut, and positions run past the model's 512 (RoPE allows it). NAME.len512
has max_length 512, where the trainers differ:
  SFT     cuts prompt + completion to its first 512 tokens and drops rows with no completion token left
  DPO     drops pairs whose prompt alone has 512 tokens or more, then cuts prompt + chosen and prompt + rejected each to the first 512
  reward  cuts nothing: drops every pair with either side longer than 512
so rows after a drop move up, the last batch of an epoch is short, and the reward run starts over from its first row (steps 7 and 8).
"""
import gzip
import json
import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from golden import HERE, SHARED, versions, write_json

PAIRS, STEPS, MARK = 64, 8, "\n\nAssistant:"
MODEL = SHARED / "models/stories260k"
RUNS = {  # name: trainer, its own settings
    "sft": (trl.SFTTrainer, trl.SFTConfig, dict(completion_only_loss=True)),
    "reward": (trl.RewardTrainer, trl.RewardConfig, {}),
    "dpo_sigmoid": (trl.DPOTrainer, trl.DPOConfig, dict(loss_type=["sigmoid"], beta=0.1)),
    "dpo_ipo": (trl.DPOTrainer, trl.DPOConfig, dict(loss_type=["ipo"], beta=0.1)),
    "dpo_hinge": (trl.DPOTrainer, trl.DPOConfig, dict(loss_type=["hinge"], beta=0.1)),
}
SURPRISES = [
    "Three trainers treat rows longer than max_length in three ways (docstring); only the reward trainer never cuts.",
    "DPO rewards/accuracies is 0 in the first step: rewards are all 0 there and a tie counts as wrong.",
    "num_tokens of the reward and DPO trainers counts each prompt twice, once a side; DPO's entropy is over both responses, its mean_token_accuracy over the chosen only.",
    "IPO divides by the response's length after truncation.",
    "At this learning rate DPO amplifies rounding: after one AdamW step, where tiny gradients become steps of full size, float32 and float64 differ by up to "
    "5e-5 of the loss (1.6e-4 in the len512 runs, where a loss is near 0.45). SFT and reward stay within 6e-7.",
    "The tokenizer warns of rows over its model_max_length (512) and cuts nothing.",
]
LOG_ONLY = ("loss", "learning_rate", "epoch", "grad_norm", "train_", "total_flos")  # recorded from elsewhere, or not about the maths


def pairs():
    with gzip.open(SHARED / "data/preferences/hh_harmless_base_test.jsonl.gz", "rt") as file:
        for line, _ in zip(file, range(PAIRS)):
            row = json.loads(line)
            cut = {side: row[side].rindex(MARK) + len(MARK) for side in ("chosen", "rejected")}
            prompt = row["chosen"][: cut["chosen"]]
            assert prompt == row["rejected"][: cut["rejected"]]
            yield dict(prompt=prompt, chosen=row["chosen"][cut["chosen"]:], rejected=row["rejected"][cut["rejected"]:])


def new_model(name, dtype):
    if name.startswith("reward"):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32).to(dtype)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)


def new_trainer(name, rows, max_length, dtype, out):
    cls, config, options = RUNS[name]
    if name == "sft":
        rows = [dict(prompt=r["prompt"], completion=r["chosen"]) for r in rows]
    args = config(output_dir=out, per_device_train_batch_size=8, max_steps=STEPS, learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0,
                  max_length=max_length, train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False, use_cpu=True, logging_steps=1,
                  save_strategy="no", report_to=[], disable_tqdm=True, seed=0, **options)
    assert (args.max_grad_norm, args.weight_decay, args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (1.0, 0.0, 0.9, 0.999, 1e-8)
    assert args.optim.startswith("adamw_torch")
    trainer = cls(model=new_model(name, dtype), args=args, train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(MODEL))
    assert isinstance(trainer._get_train_sampler(trainer.train_dataset), SequentialSampler)
    return trainer


def run(name, rows, max_length, dtype=torch.float32):
    with tempfile.TemporaryDirectory() as out:
        trainer = new_trainer(name, rows, max_length, dtype, out)
        batches, losses, inner = [], [], trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            batches.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
            result = inner(model, inputs, *args, **kwargs)
            losses.append(result.item())
            return result

        trainer.compute_loss = compute_loss
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        assert len(logs) == len(batches) == STEPS
        assert all(torch.is_floating_point(p) and p.dtype == dtype for p in trainer.model.parameters())
        return trainer, batches, losses, logs


def sequences(batch):
    """The batch's rows without padding; padding is on the right everywhere."""
    return [ids[: int(mask.sum())].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def rows_of(name, batch, tokenised):
    """Which pairs these are: each whole (cut) sequence must be the start of exactly one pair's prompt + response."""
    found = sequences(batch)
    whole = {side: [p + c for p, c in zip(tokenised["prompt"], tokenised[side])] for side in ("chosen", "rejected")}
    match = lambda ids, side: [i for i, w in enumerate(whole[side]) if w[: len(ids)] == ids]
    half = len(found) if name == "sft" else len(found) // 2
    picked = [match(ids, "chosen") for ids in found[:half]]
    assert all(len(m) == 1 for m in picked)
    if name != "sft":
        assert picked == [match(ids, "rejected") for ids in found[half:]]
    return [m[0] for m in picked]


def trained_tokens(batch):
    if "labels" in batch:
        return int((batch["labels"] != -100).sum())
    return int(batch["completion_mask"].sum()) if "completion_mask" in batch else 0


def record(name, rows, max_length, tokenised):
    trainer, batches, losses, logs = run(name, rows, max_length)
    _, _, f64_losses, _ = run(name, rows, max_length, torch.float64)
    steps = [dict(rows=rows_of(name, batch, tokenised), tokens=int(batch["attention_mask"].sum()), trained_tokens=trained_tokens(batch), loss=loss,
                  grad_norm=log["grad_norm"], **{k: v for k, v in log.items() if not k.startswith(LOG_ONLY)})
             for batch, loss, log in zip(batches, losses, logs)]
    params = {n: dict(norm=p.detach().double().norm().item(), first=p.detach().flatten()[:4]) for n, p in trainer.model.named_parameters()}
    spread = max(abs(a - b) / abs(b) for a, b in zip(losses, f64_losses))
    print(f"{name} {max_length}: losses {losses}, float32 against float64 {spread:.1e}")
    return dict(max_length=max_length, rows_kept=len(trainer.train_dataset), steps=steps, f64_loss=f64_losses, params=params)


def tokenise(rows):
    """TRL's own tokenisation by each trainer, and what it comes to."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with tempfile.TemporaryDirectory() as out:
        data = {name: new_trainer(name, rows, None, torch.float32, out).train_dataset for name in ("sft", "reward", "dpo_sigmoid")}
    ids = {side: data["dpo_sigmoid"][f"{side}_ids"] for side in ("prompt", "chosen", "rejected")}
    ids = {side: [list(row) for row in column] for side, column in ids.items()}
    sft, reward = data["sft"], data["reward"]
    for i, (row, p, c, r) in enumerate(zip(rows, ids["prompt"], ids["chosen"], ids["rejected"], strict=True)):
        # The whole text is tokenised at once, with </s> appended as text, which the tokenizer reads as the special token.
        assert p + c == tokenizer(row["prompt"] + row["chosen"] + "</s>").input_ids
        assert p + r == tokenizer(row["prompt"] + row["rejected"] + "</s>").input_ids
        assert p == tokenizer(row["prompt"]).input_ids, "no token crosses the boundary in this data"
        assert (p + c).count(1) == 1 and p[0] == 1 and c[-1] == 2 and r[-1] == 2 and (p + c + r).count(2) == 2 and 0 not in p + c + r
        assert sft["input_ids"][i] == p + c == reward["chosen_ids"][i] and reward["rejected_ids"][i] == p + r
        assert [x != -100 for x in sft["labels"][i]] == [False] * len(p) + [True] * len(c)
    facts = dict(
        bos="one <s> (1) starts every prompt, put there by the tokenizer's post-processor", eos="</s> (2) ends every response; TRL appends it and it carries loss",
        pad="<unk> (0), the tokenizer's own pad token; TRL kept it and it occurs in no row", boundary="prompt_ids is the longest common prefix of tokens(prompt), "
        "tokens(prompt + chosen) and tokens(prompt + rejected); in these rows that is all of tokens(prompt)",
        same="SFT, reward and DPO trainers give the same ids", longest=max(len(p) + max(len(c), len(r)) for p, c, r in zip(*ids.values())))
    assert tokenizer.pad_token_id == 0
    return ids, facts


def main():
    rows = list(pairs())
    ids, facts = tokenise(rows)
    tensors = {}
    for side, column in ids.items():
        tensors[f"{side}_ids"] = torch.tensor([t for row in column for t in row], dtype=torch.uint16)
        tensors[f"{side}_offsets"] = torch.tensor([0] + [len(row) for row in column]).cumsum(0).int()
    tensors["score.weight"] = new_model("reward", torch.float32).score.weight.detach().clone()
    save_file(tensors, HERE / "trl_parity.safetensors")
    runs = {f"{name}{suffix}": record(name, rows, max_length, ids) for name in RUNS for suffix, max_length in (("", 2048), (".len512", 512))}
    write_json("trl_parity.json", dict(made_by="make_trl_parity.py: its docstring says what each field is", versions=versions(trl, transformers),
                                       tokenisation=facts, surprises=SURPRISES, settings=dict(learning_rate=1e-3, batch=8, beta=0.1, max_grad_norm=1.0), runs=runs))


torch.set_num_threads(1)
main()
