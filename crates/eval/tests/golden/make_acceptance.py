"""Writes acceptance.json beside this file: what tests/acceptance.rs compares with.

Run: python3 -m venv V && V/bin/pip install scipy==1.17.1 statsmodels==0.15.0
     V/bin/python make_acceptance.py

Estimates are scipy's and numpy's; standard errors are statsmodels' clustered sandwich, or its formula by numerical derivatives of the
whole statistic with respect to each prompt's weight (the infinitesimal jackknife), so no influence function is written twice.
"""
import itertools
import json
import pathlib

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import optimize, stats

rng = np.random.default_rng(20261128)
out = {"versions": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__}}

# 90 pairs of 70 prompts. Rewards in quarters, so that some margins are exactly 0.
n = 90
prompt = np.concatenate([np.arange(70), rng.choice(70, n - 70)])
tokens = rng.integers(3, 40, (n, 2))
tokens[:5, 1] = tokens[:5, 0]
reward = np.round(4 * (rng.normal(0, 0.8, (n, 2)) + np.array([0.6, 0.0]) + rng.normal(0, 0.3, 70)[prompt][:, None] * np.array([1, 0]))) / 4
reward[7, 1] = reward[7, 0]
category = np.array(["harmless", "helpful"])[rng.integers(0, 2, n)]
votes = np.column_stack([rng.integers(0, 5, n), rng.integers(0, 3, n)])
others = reward[None, :, 0] - reward[None, :, 1] + rng.normal(0, 0.7, (2, n))
out["pairs"] = [
    {"prompt": f"p{prompt[i]}", "category": str(category[i]), "tokens": tokens[i].tolist(), "reward": reward[i].tolist(), "votes": votes[i].tolist()} for i in range(n)]
out["others"] = others.tolist()

z = reward[:, 0] - reward[:, 1]
right = np.where(z > 0, 1.0, np.where(z < 0, 0.0, 0.5))
credit = lambda d: np.where(d > 0, 1.0, np.where(d < 0, 0.0, 0.5))
longer = credit(tokens[:, 0] - tokens[:, 1])


def clustered(values, groups):
    """Mean, clustered standard error with C/(C-1), and Student's 95 % interval."""
    c = len(np.unique(groups))
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}, use_t=True)
    se = float(np.sqrt(c / (c - 1) * fit.cov_params()[0, 0]))
    reach = stats.t.ppf(0.975, c - 1) * se
    return {"estimate": float(np.mean(values)), "low": float(np.mean(values) - reach), "high": float(np.mean(values) + reach), "n": len(values)}


def jackknifed(statistic, groups):
    """A statistic of pair weights: its value, and Student's interval by its derivative at each prompt's weight."""
    ids, value, h = np.unique(groups), statistic(np.ones(len(groups))), 1e-4
    slopes = []
    for g in ids:
        w = np.ones(len(groups))
        w[groups == g] += h
        up = statistic(w)
        w[groups == g] -= 2 * h
        slopes.append((up - statistic(w)) / (2 * h))
    c = len(ids)
    reach = stats.t.ppf(0.975, c - 1) * np.sqrt(c / (c - 1) * np.sum(np.square(slopes)))
    return {"estimate": float(value), "low": float(value - reach), "high": float(value + reach), "n": len(groups)}


def temperature(w):
    slope = lambda b: np.sum(w * -z / (1 + np.exp(b * z)))
    return 1 / optimize.brentq(slope, 1e-3, 50, xtol=1e-14)


p = 1 / (1 + np.exp(-np.abs(z)))
order = np.argsort(p, kind="stable")
bins = [order[b * n // 10:(b + 1) * n // 10] for b in range(10)]
ece = lambda y: sum(abs(np.sum(y[b] - p[b])) for b in bins) / n
null = np.mean([ece((rng.random(n) < p).astype(float)) for _ in range(20000)])
signs = np.zeros(n)
for b in bins:
    signs[b] = np.sign(np.sum(right[b] - p[b]))

with_, against = votes.T
voted = votes.sum(1) >= 2
loo = with_ * credit(with_ - 1 - against) * (with_ > 0) + against * credit(against - 1 - with_) * (against > 0)
model = with_ * right + against * (1 - right)
own = lambda m: m / np.sqrt(np.mean(m * m))
scaled = np.vstack([own(z)] + [own(m) for m in others])

measure = out["measures"] = {
    "accuracy": clustered(right, prompt),
    "accuracy_over_longer_wins": clustered(right - longer, prompt),
    "accuracy_over_shorter_wins": clustered(right - (1 - longer), prompt),
    "brier": clustered((1 - 1 / (1 + np.exp(-z))) ** 2, prompt),
    "log_loss": clustered(np.logaddexp(0, -z), prompt),
    "temperature": jackknifed(temperature, prompt),
    "ensemble_agreement": clustered(np.mean([credit(z * m) for m in others], 0), prompt),
    "ensemble_sd": clustered(np.std(scaled, axis=0, ddof=1), prompt),
}
# Only prompts with votes are clusters of these two.
for name, f in [("share_of_ceiling", lambda w: np.sum(w * model[voted]) / np.sum(w * loo[voted])),
                ("human_agreement", lambda w: np.sum(w * loo[voted]) / np.sum(w * votes.sum(1)[voted]))]:
    measure[name] = jackknifed(f, prompt[voted]) | {"n": int(votes.sum(1)[voted].sum())}
unequal = tokens[:, 0] != tokens[:, 1]
measure["prefers_longer"] = clustered(credit(z * (tokens[:, 0] - tokens[:, 1]))[unequal], prompt[unequal])
measure["longer_wins"] = clustered(longer, prompt)
groups = {"harmless": category == "harmless", "helpful": category == "helpful", "length: chosen shorter": tokens[:, 0] < tokens[:, 1],
          "length: chosen longer": tokens[:, 0] > tokens[:, 1], "length: equal": ~unequal, "length: chosen under half": 2 * tokens[:, 0] < tokens[:, 1],
          "length: chosen over double": tokens[:, 0] > 2 * tokens[:, 1]}
out["by_group"] = {name: {"estimate": float(np.mean(right[of])), "n": int(of.sum())} for name, of in groups.items()}
excess = clustered(signs * (right - p), prompt)
out["ece"] = {"ece": float(ece(right)), "null": float(null), "half_width": excess["high"] - excess["estimate"]}

# Best-of-n: 25 prompts with 8 to 10 responses; every subset of every size.
sizes = [1, 2, 3, 4, 6, 8]
candidates = []
for _ in range(25):
    k = int(rng.integers(8, 11))
    proxy = np.round(2 * rng.normal(0, 1.2, k)) / 2  # ties
    gold = np.minimum(proxy, 0.5) - 1.2 * np.maximum(proxy - 0.5, 0) + rng.normal(0, 0.3, k)
    candidates.append((proxy, gold))


def best(proxy, value, size):
    total = 0.0
    for group in itertools.combinations(range(len(proxy)), size):
        group = np.array(group)
        winners = group[proxy[group] == proxy[group].max()]
        total += np.mean(value[winners])
    return total / scipy.special.comb(len(proxy), size)


gains = np.array([[best(p, g, s) - g.mean() for s in sizes] for p, g in candidates])
proxy_gains = np.array([[best(p, p, s) - p.mean() for s in sizes] for p, _ in candidates])
kl = np.array([np.log(s) - (s - 1) / s for s in sizes])
d = np.sqrt(kl[1:])
x = np.column_stack([d, -d * d])
ids = np.arange(25)
coefficients = lambda w: np.linalg.lstsq(x, (w @ gains / w.sum())[1:], rcond=None)[0]
out["best_of_n"] = {
    "candidates": [{"proxy": p.tolist(), "gold": g.tolist()} for p, g in candidates],
    "sizes": sizes, "kl": kl.tolist(), "gold": gains.mean(0).tolist(), "proxy": proxy_gains.mean(0).tolist(),
    "gold_at_4": clustered(gains[:, 3], ids),
    "alpha": jackknifed(lambda w: coefficients(w)[0], ids), "beta": jackknifed(lambda w: coefficients(w)[1], ids),
    "peak": jackknifed(lambda w: coefficients(w)[0] / (2 * coefficients(w)[1]), ids)}

# A PPO run's checkpoints.
kl = np.array([0.4, 1.1, 2.5, 4.0, 7.5, 11.0, 16.0, 24.0, 33.0])
d = np.sqrt(kl)
gold = d * (0.35 - 0.122 * np.log(d)) + rng.normal(0, 0.03, len(d))
fit = sm.OLS(gold, np.column_stack([d, -d * np.log(d)])).fit(cov_type="HC1")
(a, b), v = fit.params, fit.cov_params()
peak = np.exp(a / b - 1)
slope = peak * np.array([1 / b, -a / b ** 2])
reach = stats.t.ppf(0.975, len(d) - 1)
with_se = lambda value, se: {"estimate": float(value), "low": float(value - reach * se), "high": float(value + reach * se), "n": len(d)}
out["curve"] = {"points": [{"kl": float(k), "gold": float(g)} for k, g in zip(kl, gold)],
                "alpha": with_se(a, np.sqrt(v[0, 0])), "beta": with_se(b, np.sqrt(v[1, 1])), "peak": with_se(peak, np.sqrt(slope @ v @ slope))}

pathlib.Path(__file__).with_name("acceptance.json").write_text(json.dumps(out, indent=0))
