"""Writes gate.json beside this file: numbers of scipy, statsmodels and confseq that tests/gate_golden.rs compares with.

Run: python3 -m venv V && V/bin/pip install scipy==1.17.1 statsmodels==0.15.0 scikit-build cmake ninja pybind11 multiprocess matplotlib
     V/bin/pip install --no-build-isolation confseq==0.0.11      (needs Boost's headers)
     V/bin/python make_gate.py
"""
import json
import pathlib

import numpy as np

np.float_ = np.float64  # confseq 0.0.11 was written for numpy 1.

import scipy
import statsmodels
import statsmodels.api as sm
from confseq.betting import betting_mart
from confseq.betting_strategies import lambda_predmix_eb
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20261127)
out = {"versions": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__, "confseq": "0.0.11"}}

out["beta_quantile"] = [{"p": p, "a": a, "b": b, "x": float(stats.beta.ppf(p, a, b))} for p, a, b in [
    (0.025, 1, 520), (0.975, 3, 48), (0.5, 0.5, 0.5), (0.05, 40.7, 3.2), (1e-9, 2, 2), (0.3, 0.01, 5), (0.999, 800, 1200)]]
out["clopper_pearson"] = [{"k": k, "n": n, "confidence": c, "low": float(lo), "high": float(hi)} for k, n, c, lo, hi in [
    (k, n, c, *proportion_confint(k, n, 1 - c, "beta")) for k, n, c in [(0, 520, 0.9), (16, 250, 0.95), (250, 250, 0.95), (3, 7, 0.99), (499, 1000, 0.5)]]]

p = np.round(rng.uniform(0, 1, 17) ** 3, 4)
p[3] = p[9]
out["holm"] = {"p": p.tolist(), "adjusted": multipletests(p, method="holm")[1].tolist()}

# Means and differences of scores that share prompts and annotators. statsmodels multiplies the one-way covariance by
# (n - 1) / (n - k) as well as C / (C - 1); without its correction and with C / (C - 1) by hand it is the formula here.
prompts, people = 30, 7
votes = [(c, a) for c in range(prompts) for a in rng.choice(people, rng.integers(1, 5), replace=False)]
prompt, annotator = np.array(votes).T
effect = rng.normal(0, 0.2, prompts)[prompt] + rng.normal(0, 0.15, people)[annotator]
first = np.clip(np.round(2 * (0.55 + effect + rng.normal(0, 0.3, len(votes)))) / 2, 0, 1)
keep = rng.random(len(votes)) < 0.7
second = np.clip(np.round(2 * (0.45 + effect[keep] + rng.normal(0, 0.3, keep.sum()))) / 2, 0, 1)
y = np.concatenate([first, second])
x = np.column_stack([np.ones(len(y)), np.arange(len(y)) < len(first)]).astype(float)
by_prompt, by_annotator = np.concatenate([prompt, prompt[keep]]), np.concatenate([annotator, annotator[keep]])


def variance(y, x, groups, which):
    c = len(np.unique(groups))
    fit = sm.OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}, use_t=True)
    return c / (c - 1) * fit.cov_params()[which, which]


def se(y, x, which, a, b):
    both = a * 1000 + b
    return float(np.sqrt(variance(y, x, a, which))), float(np.sqrt(variance(y, x, a, which) + variance(y, x, b, which) - variance(y, x, both, which)))


mean_se = se(first, np.ones((len(first), 1)), 0, prompt, annotator)
difference_se = se(y, x, 1, by_prompt, by_annotator)
out["clustered"] = {"prompt": prompt.tolist(), "annotator": annotator.tolist(), "first": first.tolist(), "keep": keep.tolist(), "second": second.tolist(),
                    "mean": float(first.mean()), "mean_se": mean_se, "difference": float(first.mean() - second.mean()), "difference_se": difference_se,
                    "t_prompt": float(stats.t.ppf(0.95, len(np.unique(prompt)) - 1)), "t_both": float(stats.t.ppf(0.95, people - 1))}

n = 400
group = rng.integers(0, 150, n)
ours, theirs = np.round(rng.gamma(3, 60, n)), np.round(rng.gamma(3, 50, n))
delta = ours - theirs
feature = np.tanh(delta / delta.std(ddof=1))
score = rng.choice([0, 0.5, 1], n, p=[0.4, 0.2, 0.4])
score = np.where(rng.random(n) < 0.5, (rng.random(n) < 1 / (1 + np.exp(-(0.2 + 1.1 * feature)))).astype(float), score)
c = len(np.unique(group))
glm = sm.GLM(score, sm.add_constant(feature), family=sm.families.Binomial()).fit(
    cov_type="cluster", cov_kwds={"groups": group, "use_correction": False}, tol=1e-14, tol_criterion="params", maxiter=200)
errors = np.sqrt(c / (c - 1) * np.diag(glm.cov_params()))
out["length_controlled"] = {"score": score.tolist(), "ours": ours.tolist(), "theirs": theirs.tolist(), "prompt": group.tolist(),
                            "theta": float(glm.params[0]), "phi": float(glm.params[1]), "se_theta": float(errors[0]), "se_phi": float(errors[1]),
                            "t": float(stats.t.ppf(0.95, c - 1))}

# The capital of confseq's martingales, with the bets of the paper, ln(2 / alpha) for two sides: alpha / 2 in each call.
values = np.concatenate([rng.choice([0, 0.5, 1], 220, p=[0.25, 0.2, 0.55]), rng.beta(3, 2, 80).round(3)])
bets = lambda x, m: lambda_predmix_eb(x, alpha=0.05)
rows = []
for m in [0.02, 0.35, 0.5, 0.58, 0.65, 0.8, 0.97]:
    above = betting_mart(values, m, lambdas_fn_positive=bets, theta=1)
    below = betting_mart(values, m, lambdas_fn_positive=bets, theta=0)
    rows.append({"m": m, "ln_above": np.log(above)[[9, 99, 299]].tolist(), "ln_below": np.log(below)[[9, 99, 299]].tolist()})


def crossed(m, theta):
    return betting_mart(values, m, lambdas_fn_positive=bets, theta=theta).max() - 20


low = optimize.brentq(lambda m: np.log(crossed(m, 1) + 20) - np.log(20), 0.01, values.mean(), xtol=1e-14)
high = optimize.brentq(lambda m: np.log(crossed(m, 0) + 20) - np.log(20), values.mean(), 0.99, xtol=1e-14)
out["betting"] = {"values": values.tolist(), "alpha": 0.05, "rows": rows, "low": float(low), "high": float(high)}

z = rng.normal(0.8, 2.5, 300)
outcome = (rng.random(300) < 1 / (1 + np.exp(-z / 1.7))).astype(float)
nll = lambda t: float(np.mean(np.logaddexp(0, z / t) - outcome * z / t))
best = optimize.minimize_scalar(lambda s: nll(np.exp(s)), bracket=(-1, 1), tol=1e-15)
out["temperature"] = {"logit": z.tolist(), "outcome": outcome.tolist(), "temperature": float(np.exp(best.x)), "log_loss": nll(1.0)}

d = np.sort(rng.uniform(0.6, 12, 25))
weight = rng.uniform(0.5, 2, 25)
curves = []
for form, f, truth in [("best_of_n", d, (0.653, 0.0965)), ("rl", np.log(d), (0.35, 0.122))]:
    reward = d * (truth[0] - truth[1] * f) + rng.normal(0, 0.03, 25)
    fit = sm.WLS(reward, np.column_stack([d, -d * f]), weights=weight).fit()
    (a, b), cov = fit.params, fit.cov_params()
    if form == "best_of_n":
        ln_peak, gradient = np.log(a / (2 * b)), np.array([1 / a, -1 / b])
    else:
        ln_peak, gradient = a / b - 1, np.array([1 / b, -a / b**2])
    reach = stats.t.ppf(0.95, 23) * np.sqrt(gradient @ cov @ gradient)
    curves.append({"form": form, "reward": reward.tolist(), "params": fit.params.tolist(), "interval": fit.conf_int(0.1).tolist(),
                   "peak": [float(np.exp(ln_peak - reach)), float(np.exp(ln_peak)), float(np.exp(ln_peak + reach))]})
out["over_optimisation"] = {"d": d.tolist(), "weight": weight.tolist(), "curves": curves}



def lang_reiczigel(called, n, right_positive, positives, right_negative, negatives, level):
    """As in the authors' R function of 15 March 2013, which comes with the paper."""
    z, plus = stats.norm.ppf((1 + level) / 2), 2
    prev, sens, spec = (called + z**2 / 2) / (n + z**2), (right_positive + plus / 2) / (positives + plus), (right_negative + plus / 2) / (negatives + plus)
    est, youden = (prev + spec - 1) / (sens + spec - 1), sens + spec - 1
    error = np.sqrt(prev * (1 - prev) / (n + z**2) + sens * (1 - sens) / (positives + plus) * est**2 + spec * (1 - spec) / (negatives + plus) * (1 - est) ** 2) / abs(youden)
    shift = 2 * z**2 * (est * sens * (1 - sens) / (positives + plus) - (1 - est) * spec * (1 - spec) / (negatives + plus))
    return [float(np.clip(est + shift + sign * z * error, 0, 1)) for sign in (-1, 1)]


cases = [(23, 150, 96, 100, 89, 100, 0.95), (6, 151, 50, 60, 60, 61, 0.9), (40, 50, 12, 15, 28, 30, 0.99), (0, 200, 90, 100, 300, 300, 0.95)]
out["prevalence"] = [{"counts": case[:6], "confidence": case[6], "ends": lang_reiczigel(*case)} for case in cases]

pathlib.Path(__file__).with_name("gate.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
