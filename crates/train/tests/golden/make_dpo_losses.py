"""Writes dpo_losses.json: losses on preferences, each with its gradient with respect to every per-token log-probability of the policy.

Made with trl 1.16.0 (torch 2.15.0, transformers 5.23.0) and openrlhf 0.11.2, CPU.
Run: python make_dpo_losses.py OPENRLHF_DIR     (pip install --no-deps --target OPENRLHF_DIR openrlhf==0.11.2)

Nothing is transcribed: TRL's own loss methods run, on a stand-in model that returns the log-probabilities below where a language
model would compute them, and torch.autograd gives the gradient. So TRL's masking, summing, length counting and sorting are in the numbers.

Inputs, all float32 values, ragged: response i of `inputs.X.chosen` has one entry for each of its tokens.
  chosen, rejected              log-probs under the policy        ref_chosen, ref_rejected   under the reference
  chosen_logsumsq, ...          log sum_v p(v)^2 of the policy at each token, which WPO's weights need (constants, no gradient)
`dpo.cases[*]`: `input` names the inputs; `settings` are DPOConfig's names, what is not named has TRL's default; beta is always given.
  dtype     float64: computed in double precision from the float32 inputs. float32: TRL's code does not run in float64 there
  loss      mean over pairs (weighted over loss types);  d_chosen, d_rejected: its gradient, ragged as the inputs
  metrics   TRL's `rewards/*` and `logps/*`: they use the plain log-ratio even under another f-divergence, and the ld_alpha weighted sums
`kto`: trainer KTOTrainer; rows 0..4 are the chosen responses, 5..9 the rejected ones (`label` says so). `kl_*` are log-probs of the mismatched
  completions; the KL term is max(0, mean(sum kl_policy - sum kl_ref)), without gradient.
`cpo`: CPOTrainer's cpo_loss (SimPO is `simpo`), reference-free; `simpo` and `ipo` average over tokens, the others sum. With cpo_alpha the mean
  negative log-prob over all chosen tokens of the batch is added.
`orpo`: ORPOTrainer's odds_ratio_loss on token means, in float32 (TRL casts). `loss` = nll - mean(beta log sigmoid(log odds ratio)), with nll over the chosen
  completion's tokens as in the paper. TRL's trainer itself also counts the prompt's tokens in the nll; that part is not in here.
`dpo.refusals`: what raises in TRL's own code; Polity is free to support it, there is just no TRL value to compare with.
Surprises: hinge and sft cannot be combined with use_weighting (see refusals); label_smoothing does nothing in `sigmoid`; nca_pair, bco_pair, sppo_hard, the
  aot and apo losses ignore f_divergence_type; a pair whose rewards are equal counts as wrong in rewards/accuracies and in the reward trainer's accuracy.
`cdpo`, `ipo_sum`: OpenRLHF's DPOLoss on summed log-probs, with label_smoothing, and with ipo=True (sums, where TRL's ipo has token means).
`reward`: RewardTrainer's loss from scalar scores, with margins and with center_rewards_coefficient; OpenRLHF's LogExpLoss equals the plain one.
`sft`: SFTTrainer's loss from the chosen log-probs: nll and dft, over the batch's tokens and over a given num_items_in_batch.
"""
import importlib
import sys
import types
from collections import defaultdict
from pathlib import Path

import torch
import transformers
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from golden import versions, write_json

# (chosen, rejected) lengths: either side the longer one, equal, and single tokens.
LENGTHS = [(4, 7), (6, 3), (5, 5), (1, 2), (3, 1)]
PROMPT = 2  # masked positions before each response, so that a shift by one would show
SIDES = ("chosen", "rejected")
F32 = torch.float32


def draw_inputs(seed, gap):
    """Per-token log-probs in (-4, -0.05); the reference differs from the policy by about `gap` a token."""
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda n, low, high: low + (high - low) * torch.rand(n, generator=generator, dtype=F32)
    normal = lambda n: torch.randn(n, generator=generator, dtype=F32)
    inputs = {}
    for side, lengths in zip(SIDES, zip(*LENGTHS)):
        inputs[side] = [uniform(n, -4.0, -0.05) for n in lengths]
        inputs[f"ref_{side}"] = [torch.clamp(x + gap * normal(len(x)), max=-0.01) for x in inputs[side]]
        # log sum p^2 lies between 2 log(max p) and log(max p).
        inputs[f"{side}_logsumsq"] = [uniform(len(x), -2.5, -0.1) for x in inputs[side]]
    return inputs


def extreme_inputs():
    """Log-ratios of hundreds of nats, as after divergence: what must stay finite shows here."""
    inputs = draw_inputs(8, 0.3)
    for i, shift in enumerate([60.0, -60.0, 0.0, 400.0, -400.0]):
        inputs["chosen"][i] = inputs["chosen"][i] - max(shift, 0.0)
        inputs["ref_chosen"][i] = inputs["ref_chosen"][i] + min(shift, 0.0)
    return inputs


def equal_inputs():
    """Policy equal to reference: the first step of every run."""
    inputs = draw_inputs(9, 0.0)
    for side in SIDES:
        inputs[f"ref_{side}"] = [x.clone() for x in inputs[side]]
    return inputs


class Accelerator:
    """One process: gathering is the identity."""
    device = torch.device("cpu")
    num_processes = 1
    parallelism_config = None
    gather = gather_for_metrics = staticmethod(lambda x: x)


class Padded:
    """Ragged rows laid out as TRL's collators lay them out: PROMPT masked positions, the response, then padding on the right."""

    def __init__(self, lengths):
        self.lengths, self.width = lengths, PROMPT + max(lengths)
        self.mask = torch.tensor([[0] * PROMPT + [1] * n + [0] * (self.width - PROMPT - n) for n in lengths])

    def batch(self):
        return dict(input_ids=torch.ones_like(self.mask), completion_mask=self.mask,
                    attention_mask=(torch.arange(self.width) < PROMPT + torch.tensor(self.lengths)[:, None]).long())

    def shifted(self, rows):
        """[row, position - 1], zero outside the response, as the fused head returns it."""
        place = lambda x, n: torch.cat([x.new_zeros(PROMPT - 1), x, x.new_zeros(self.width - PROMPT - n)])
        return torch.stack([place(x, n) for x, n in zip(rows, self.lengths, strict=True)])


class Model(torch.nn.Module):
    """Stands where a language model stands: returns given log-probs for given ids."""
    config = types.SimpleNamespace()

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, labels=None, **_):
        got, expected = (labels[:, 1:] != -100), self.outputs.label_mask
        assert torch.equal(got, expected), "TRL asked for other positions than the responses'"
        return self.outputs


def fused_output(padded, rows, logsumsq=None):
    log_probs = padded.shifted(rows)
    zeros, mask = torch.zeros_like(log_probs), padded.mask[:, 1:].bool()
    return types.SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=mask & False, label_mask=mask, aux_loss=None,
                                 log_sum_sq_probs=None if logsumsq is None else padded.shifted(logsumsq))


def leaves(rows, dtype):
    return [x.to(dtype, copy=True).requires_grad_() for x in rows]


def gradients(rows):
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in rows]


def trainer_stub(model, ref_model, **fields):
    return types.SimpleNamespace(model=model, ref_model=ref_model, accelerator=Accelerator(), _metrics=defaultdict(lambda: defaultdict(list)),
                                 _total_train_tokens=0, _tp_size=1, aux_loss_enabled=False, precompute_ref_logps=False, **fields)


def metrics_of(stub, *prefixes):
    return {k: v[-1] for k, v in stub._metrics["train"].items() if k.startswith(prefixes)}


def dpo_case(inputs, name, dtype=torch.float64, **settings):
    options = dict(loss_type=["sigmoid"], loss_weights=None, label_smoothing=0.0, ld_alpha=None, f_divergence_type="reverse_kl",
                   f_alpha_divergence_coef=0.5, use_weighting=False, discopop_tau=0.05)
    options.update(settings)
    source = inputs[name]
    padded = Padded([len(x) for side in SIDES for x in source[side]])
    policy = leaves(source["chosen"] + source["rejected"], dtype)
    reference = [x.to(dtype) for x in source["ref_chosen"] + source["ref_rejected"]]
    logsumsq = [x.to(dtype) for x in source["chosen_logsumsq"] + source["rejected_logsumsq"]]
    stub = trainer_stub(Model(fused_output(padded, policy, logsumsq)), Model(fused_output(padded, reference)),
                        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=options["discopop_tau"]),
                        loss_types=options["loss_type"], loss_weights=options["loss_weights"] or [1.0] * len(options["loss_type"]),
                        **{k: options[k] for k in ("beta", "label_smoothing", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting")})
    stub.model.is_gradient_checkpointing = False
    torch.set_default_dtype(dtype)  # TRL's own constants (log of label_smoothing, lengths) take this type
    loss = trl.DPOTrainer._compute_loss(stub, stub.model, padded.batch(), return_outputs=False)
    torch.set_default_dtype(torch.float64)
    assert loss.dtype == dtype, (loss.dtype, dtype, settings)
    loss.backward()
    grads, n = gradients(policy), len(source["chosen"])
    return dict(input=name, settings=settings, dtype=str(dtype).removeprefix("torch."), loss=loss, d_chosen=grads[:n], d_rejected=grads[n:],
                metrics=metrics_of(stub, "rewards/", "logps/"))


def dpo_cases(inputs):
    cases = {}

    def add(case, *, input="mild", **settings):
        settings = dict(beta=0.5) | settings
        cases[case] = dpo_case(inputs, input, **settings)

    plain = ["sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
             "sigmoid_norm"]
    for loss in plain:
        add(loss, loss_type=[loss])
        add(f"{loss}.beta_0.1", loss_type=[loss], beta=0.1)
    for loss in plain + ["robust", "exo_pair"]:
        smoothing = dict(label_smoothing=0.1) if loss in ("robust", "exo_pair") else {}
        add(f"{loss}.equal", input="equal", loss_type=[loss], **smoothing)
    for loss in ("robust", "exo_pair", "aot", "aot_unpaired"):
        add(f"{loss}.smoothing_0.1", loss_type=[loss], label_smoothing=0.1)
        add(f"{loss}.smoothing_0.3", loss_type=[loss], label_smoothing=0.3, beta=0.1)
    add("robust", loss_type=["robust"])
    add("sigmoid.smoothing_ignored", loss_type=["sigmoid"], label_smoothing=0.1)
    add("discopop.tau_1", loss_type=["discopop"], discopop_tau=1.0)

    divergences = {"forward_kl": {}, "js_divergence": {}, "alpha_divergence": dict(dtype=torch.float32),
                   "alpha_divergence.coef_1": dict(f_alpha_divergence_coef=1.0), "alpha_divergence.coef_2": dict(f_alpha_divergence_coef=2.0, dtype=torch.float32)}
    for divergence, options in divergences.items():
        kind = divergence.split(".")[0]
        # nca_pair stands for the losses that read the plain log-ratio whatever the divergence.
        for loss in ("sigmoid", "hinge", "ipo", "sigmoid_norm", "exo_pair", "robust", "discopop", "nca_pair"):
            smoothing = dict(label_smoothing=0.1) if loss in ("robust", "exo_pair") else {}
            add(f"{loss}.{divergence}", loss_type=[loss], f_divergence_type=kind, **options, **smoothing)

    for loss in ("sigmoid", "ipo", "sft", "aot"):
        add(f"{loss}.ld_alpha_0.3", loss_type=[loss], ld_alpha=0.3)
    add("sigmoid.ld_alpha_0", loss_type=["sigmoid"], ld_alpha=0.0)
    add("sigmoid.ld_alpha_1", loss_type=["sigmoid"], ld_alpha=1.0)

    for loss in ("sigmoid", "ipo", "apo_zero", "aot", "sppo_hard"):
        add(f"{loss}.wpo", loss_type=[loss], use_weighting=True)
    add("sigmoid.wpo.ld_alpha_0.3", loss_type=["sigmoid"], use_weighting=True, ld_alpha=0.3)

    add("mpo", loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    add("mix.unweighted", loss_type=["sigmoid", "hinge"])
    add("mix.all", loss_type=["ipo", "exo_pair", "robust", "sppo_hard", "aot", "discopop"], loss_weights=[0.5, 1.5, -0.25, 0.125, 2.0, 0.0], label_smoothing=0.2)
    add("mix.wpo", loss_type=["sigmoid", "ipo"], loss_weights=[0.7, 0.3], use_weighting=True)

    for loss in ("sigmoid", "hinge", "ipo", "sigmoid_norm", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot", "exo_pair", "robust"):
        smoothing = dict(label_smoothing=0.1) if loss in ("robust", "exo_pair") else {}
        add(f"{loss}.extreme", input="extreme", loss_type=[loss], beta=0.1, **smoothing)
    add("sigmoid.js_divergence.extreme", input="extreme", loss_type=["sigmoid"], f_divergence_type="js_divergence", beta=0.1)
    add("sigmoid.alpha_divergence.extreme", input="extreme", loss_type=["sigmoid"], f_divergence_type="alpha_divergence", beta=0.1, dtype=torch.float32)
    return cases


def refusals(inputs):
    """What TRL's loss code cannot do: recorded by running it."""
    out = {}
    for loss in ("sft", "hinge"):  # TRL multiplies the loss in place, which autograd does not allow for these two
        try:
            dpo_case(inputs, "mild", loss_type=[loss], use_weighting=True, beta=0.5)
        except RuntimeError as error:
            out[f"{loss} with use_weighting"] = f"RuntimeError: {error}".split(". ")[0]
        finally:
            torch.set_default_dtype(torch.float64)
    return out


def kto_cases(inputs):
    source, dtype = inputs["mild"], torch.float64
    # TRL pairs each prompt with the previous row's completion; the numbers only have to be log-probs of something else.
    generator = torch.Generator().manual_seed(11)
    lengths = [len(x) for side in SIDES for x in source[side]]
    kl_lengths = lengths[-1:] + lengths[:-1]
    rand = lambda n: torch.rand(n, generator=generator, dtype=F32)
    kl_policy = [-4.0 * rand(n) for n in kl_lengths]
    kl_refs = {"positive": [x - 0.3 * rand(len(x)) for x in kl_policy],
               "clamped": [x + 0.3 * rand(len(x)) for x in kl_policy]}
    label = [True] * len(source["chosen"]) + [False] * len(source["rejected"])
    cases = {}
    for name, options in {
            "kto": {}, "kto.weights": dict(desirable_weight=1.33, undesirable_weight=0.75), "kto.kl_clamped": dict(kl="clamped"),
            "kto.beta_0.1": dict(beta=0.1), "apo_zero_unpaired": dict(loss_type="apo_zero_unpaired"),
            "kto.all_chosen": dict(rows=range(5)), "kto.all_rejected": dict(rows=range(5, 10)), "kto.interleaved": dict(rows=[0, 5, 1, 6, 2, 7, 3])}.items():
        settings = dict(beta=0.5, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0)
        settings.update({k: v for k, v in options.items() if k in settings})
        rows, kl = list(options.get("rows", range(10))), options.get("kl", "positive")
        pick = lambda values: [values[i] for i in rows]
        padded, kl_padded = Padded(pick(lengths)), Padded(pick(kl_lengths))
        policy = leaves(pick(source["chosen"] + source["rejected"]), dtype)
        reference = [x.to(dtype) for x in pick(source["ref_chosen"] + source["ref_rejected"])]
        to64 = lambda values: [x.to(dtype) for x in pick(values)]

        class Two(Model):
            """Tells the KL batch from the main one by its ids."""

            def __init__(self, main, other):
                super().__init__(main)
                self.other = other

            def forward(self, input_ids=None, labels=None, **kwargs):
                if (input_ids == 2).any():
                    assert torch.equal(labels[:, 1:] != -100, self.other.label_mask)
                    return self.other
                return super().forward(labels=labels, **kwargs)

        stub = trainer_stub(Two(fused_output(padded, policy), fused_output(kl_padded, to64(kl_policy))),
                            Two(fused_output(padded, reference), fused_output(kl_padded, to64(kl_refs[kl]))),
                            args=types.SimpleNamespace(gradient_checkpointing_kwargs=None), calculate_KL=settings["loss_type"] == "kto", **settings)
        stub.model.is_gradient_checkpointing = False
        stub._compute_kl_logps = lambda model, batch: trl.KTOTrainer._compute_kl_logps(stub, model, batch)
        batch = padded.batch() | {f"KL_{k}": v for k, v in kl_padded.batch().items()} | {"label": torch.tensor(pick(label))}
        batch["KL_input_ids"] = torch.full_like(batch["KL_input_ids"], 2)
        loss = trl.KTOTrainer._compute_loss(stub, stub.model, batch, return_outputs=False)
        loss.backward()
        cases[name] = dict(settings=settings, rows=rows, kl_ref=kl, loss=loss, d_policy=gradients(policy), metrics=metrics_of(stub, "rewards/", "logps/", "kl"))
    return dict(inputs=dict(label=label, kl_policy=kl_policy, kl_ref_positive=kl_refs["positive"], kl_ref_clamped=kl_refs["clamped"]), cases=cases)


def reference_free(inputs, reduce, loss_of):
    """`reduce` turns a response's log-probs into one number, `loss_of` the two lists of numbers and the leaves into a loss."""
    source = inputs["mild"]
    policy = {side: leaves(source[side], torch.float64) for side in SIDES}
    loss, extra = loss_of(*(torch.stack([reduce(x) for x in policy[side]]) for side in SIDES), policy["chosen"])
    loss.backward()
    return dict(loss=loss, d_chosen=gradients(policy["chosen"]), d_rejected=gradients(policy["rejected"]), **extra)


def cpo_cases(inputs):
    cases = {}
    for name, options in {
            "sigmoid": {}, "hinge": dict(loss_type="hinge"), "ipo": dict(loss_type="ipo"), "sigmoid.smoothing_0.1": dict(label_smoothing=0.1),
            "simpo": dict(loss_type="simpo", beta=2.0, cpo_alpha=0.0), "simpo.gamma_1.4": dict(loss_type="simpo", beta=2.5, simpo_gamma=1.4, cpo_alpha=0.0),
            "simpo.smoothing_0.1": dict(loss_type="simpo", beta=2.0, label_smoothing=0.1, cpo_alpha=0.0), "cpo_simpo": dict(loss_type="simpo", beta=2.0)}.items():
        settings = dict(loss_type="sigmoid", beta=0.5, label_smoothing=0.0, simpo_gamma=0.5, alpha=0.0, cpo_alpha=1.0) | options
        average = settings["loss_type"] in ("ipo", "simpo")  # as CPOTrainer.concatenated_forward

        def loss_of(chosen, rejected, tokens):
            stub = types.SimpleNamespace(accelerator=Accelerator(), **settings)
            losses, chosen_rewards, rejected_rewards = CPOTrainer.cpo_loss(stub, chosen, rejected)
            nll = -torch.cat(tokens).mean()
            return losses.mean() + settings["cpo_alpha"] * nll, dict(losses=losses, nll=nll, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)

        cases[name] = dict(settings=settings, **reference_free(inputs, torch.mean if average else torch.sum, loss_of))
    return cases


def orpo_cases(inputs):
    cases = {}
    for beta in (0.1, 1.0):
        def loss_of(chosen, rejected, tokens):
            stub = types.SimpleNamespace(accelerator=Accelerator(), beta=beta)
            losses, chosen_rewards, rejected_rewards, ratio, log_odds = ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)
            nll = -torch.cat(tokens).mean()
            return nll - losses.mean(), dict(losses=losses, nll=nll, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards,
                                             log_odds_ratio=ratio, log_odds_chosen=log_odds)

        cases[f"beta_{beta}"] = dict(settings=dict(beta=beta), **reference_free(inputs, torch.mean, loss_of))
    return cases


def openrlhf_cases(inputs, directory):
    package = types.ModuleType("openrlhf_models")
    package.__path__ = [str(Path(directory) / "openrlhf/models")]
    sys.modules["openrlhf_models"] = package
    utils = types.ModuleType("openrlhf_models.utils")  # loss.py needs one function of it, which DPOLoss does not call
    utils.masked_mean = None
    sys.modules["openrlhf_models.utils"] = utils
    loss_module = importlib.import_module("openrlhf_models.loss")
    out = {"cdpo": {}, "ipo_sum": {}}
    for kind, name, options in [("cdpo", "smoothing_0.1", dict(label_smoothing=0.1)), ("cdpo", "smoothing_0.3", dict(label_smoothing=0.3)),
                                ("cdpo", "smoothing_0", {}), ("ipo_sum", "plain", dict(ipo=True))]:
        for input in ("mild", "equal"):
            source = inputs[input]
            policy = {side: leaves(source[side], torch.float64) for side in SIDES}
            sums = lambda rows: torch.stack([x.double().sum() for x in rows])
            loss, chosen_rewards, rejected_rewards = loss_module.DPOLoss(beta=0.5, **options)(
                sums(policy["chosen"]), sums(policy["rejected"]), sums(source["ref_chosen"]), sums(source["ref_rejected"]))
            loss.backward()
            out[kind][f"{name}.{input}"] = dict(input=input, settings=dict(beta=0.5, **options), loss=loss, d_chosen=gradients(policy["chosen"]),
                                                d_rejected=gradients(policy["rejected"]), chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return out


def reward_cases():
    generator = torch.Generator().manual_seed(12)
    normal = lambda: torch.randn(5, generator=generator, dtype=F32)
    chosen, rejected = normal() * 2, normal() * 2
    chosen[2] = rejected[2]  # a tie: TRL counts it as wrong
    margin = torch.rand(5, generator=generator, dtype=F32) * 2
    cases = {}
    for name, (use_margin, coefficient) in {"plain": (False, None), "margin": (True, None), "centred": (False, 0.01), "margin_centred": (True, 0.5)}.items():
        scores = torch.cat([chosen, rejected]).double().requires_grad_()
        stub = trainer_stub(None, None, args=types.SimpleNamespace(center_rewards_coefficient=coefficient))
        stub.model = types.SimpleNamespace(training=True)
        inputs = dict(attention_mask=torch.ones(10, 3)) | (dict(margin=margin.double()) if use_margin else {})
        loss = trl.RewardTrainer.compute_loss(stub, lambda **_: types.SimpleNamespace(logits=scores[:, None]), inputs)
        loss.backward()
        cases[name] = dict(margin=use_margin, center_rewards_coefficient=coefficient, loss=loss, d_chosen=scores.grad[:5], d_rejected=scores.grad[5:],
                           metrics=metrics_of(stub, "min_reward", "mean_reward", "max_reward", "accuracy", "margin"))
    return dict(inputs=dict(chosen=chosen, rejected=rejected, margin=margin), cases=cases)


def sft_cases(inputs):
    cases = {}
    for loss_type in ("nll", "dft"):
        for items in (None, 50):
            policy = leaves(inputs["mild"]["chosen"], torch.float64)
            padded = Padded([len(x) for x in policy])
            stub = trainer_stub(types.SimpleNamespace(training=True), None, compute_loss_func=None, label_smoother=None,
                                args=types.SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True, max_length=None), get_tp_size=lambda: 1)
            outputs = fused_output(padded, policy)
            loss = trl.SFTTrainer.compute_loss(stub, lambda **_: outputs, padded.batch(), num_items_in_batch=items)
            loss.backward()
            cases[f"{loss_type}.items_{items or 'batch'}"] = dict(loss_type=loss_type, num_items_in_batch=items, loss=loss, d_chosen=gradients(policy))
    return cases


def main(openrlhf_dir):
    inputs = {"mild": draw_inputs(7, 0.4), "equal": equal_inputs(), "extreme": extreme_inputs()}
    write_json("dpo_losses.json", dict(
        made_by="make_dpo_losses.py: its docstring says what each field is", versions=versions(trl, transformers) | {"openrlhf": "0.11.2"},
        inputs=inputs, dpo=dict(cases=dpo_cases(inputs), refusals=refusals(inputs)), kto=kto_cases(inputs), cpo=cpo_cases(inputs), orpo=orpo_cases(inputs),
        **openrlhf_cases(inputs, openrlhf_dir), reward=reward_cases(), sft=sft_cases(inputs)))


torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
main(sys.argv[1])
