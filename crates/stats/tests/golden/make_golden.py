"""Writes golden.json beside this file: numbers of scipy, statsmodels and scikit-learn that tests/golden.rs compares with.

Run: python3 -m venv V && V/bin/pip install scipy==1.17.1 statsmodels==0.15.0 scikit-learn==1.9.1 && V/bin/python make_golden.py
"""
import json
import pathlib

import numpy as np
import scipy
import sklearn
import statsmodels
import statsmodels.api as sm
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20240229)
out = {"versions": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__, "sklearn": sklearn.__version__}}


def table(columns, rows):
    return [dict(zip(columns, map(float, row))) for row in rows]


out["normal_cdf"] = table(["x", "y"], [(x, stats.norm.cdf(x)) for x in [-37, -20, -8, -3.5, -1.96, -0.1, 0, 1e-9, 0.7, 2.3, 5, 8.2]])
out["normal_quantile"] = table(["x", "y"], [(p, stats.norm.ppf(p)) for p in [1e-300, 1e-40, 1e-12, 1e-4, 0.025, 0.31, 0.5, 0.6, 0.975, 0.9995, 1 - 1e-10]])
out["beta_cdf"] = table(["x", "a", "b", "y"], [(x, a, b, stats.beta.cdf(x, a, b)) for x, a, b in [
    (0.1, 0.5, 0.5), (0.3, 2, 5), (0.99, 2, 5), (0.5, 10, 10), (0.2, 0.1, 30), (0.52, 500, 480), (0.7, 1, 1), (1e-6, 0.5, 3), (0.505, 50000, 50000), (0.9999, 0.5, 200)]])
out["t_cdf"] = table(["t", "df", "y"], [(t, df, stats.t.cdf(t, df)) for t, df in [
    (-3, 1), (0.001, 1), (2, 2.5), (-1e-8, 7), (4.3, 9), (-30, 5), (1.97, 200), (-6, 1e5), (0.5, 0.5)]])
out["t_quantile"] = table(["p", "df", "y"], [(p, df, stats.t.ppf(p, df)) for p, df in [
    (0.975, 1), (0.975, 2), (0.975, 9), (0.95, 30), (0.995, 4.5), (0.975, 1e6), (1e-6, 3), (0.5, 3), (0.6, 100), (0.51, 12), (0.0005, 60)]])
out["binomial_at_least"] = table(["k", "n", "p", "y"], [(k, n, p, stats.binom.sf(k - 1, n, p)) for k, n, p in [
    (1, 1, 0.3), (9, 10, 0.5), (60, 100, 0.5), (700, 1000, 0.66), (3, 2000, 0.001), (0, 5, 0.5), (5200, 10000, 0.5)]])
out["wilson"] = table(["k", "n", "confidence", "low", "high"], [(k, n, c, *proportion_confint(k, n, 1 - c, "wilson")) for k, n, c in [
    (0, 10, 0.95), (10, 10, 0.95), (7, 10, 0.95), (81, 263, 0.95), (15, 148, 0.90), (1, 1, 0.99), (5000, 10000, 0.95)]])
out["sign_test"] = [{"wins": b, "losses": c, "two_sided": float(mcnemar([[0, b], [c, 0]], exact=True).pvalue),
                     "greater": float(stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue)}
                    for b, c in [(6, 2), (2, 6), (10, 10), (59, 6), (121, 59), (0, 7), (701, 612)]]

values = rng.normal(0.3, 1.7, 41).round(4)
ci = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
out["mean"] = {"values": values.tolist(), "estimate": float(values.mean()), "low": float(ci[0]), "high": float(ci[1])}

sizes = rng.integers(1, 6, 23)
cluster = np.repeat(np.arange(23), sizes)
scores = np.clip(np.round(2 * (0.55 + 0.3 * rng.normal(size=23)[cluster] + 0.35 * rng.normal(size=len(cluster)))) / 2, 0, 1)
shuffle = rng.permutation(len(cluster))
cluster, scores = cluster[shuffle], scores[shuffle]
fit = sm.OLS(scores, np.ones(len(scores))).fit(cov_type="cluster", cov_kwds={"groups": cluster}, use_t=True)
low, high = fit.conf_int(0.05)[0]
out["clustered"] = {"scores": scores.tolist(), "cluster": cluster.tolist(), "estimate": float(fit.params[0]), "se": float(fit.bse[0]),
                    "low": float(low), "high": float(high)}

# scipy's resamples are other draws: with 200 000 of them the ends have settled well below the tolerance of the test.
skewed = rng.exponential(2.0, 30).round(4)
boot = {"values": skewed.tolist(), "estimate": float(skewed.mean())}
for method, name in [("percentile", "percentile"), ("BCa", "bca")]:
    result = stats.bootstrap((skewed,), np.mean, n_resamples=200_000, batch=10_000, confidence_level=0.95, method=method, rng=np.random.default_rng(5))
    boot[name] = [float(result.confidence_interval.low), float(result.confidence_interval.high)]
    boot["se"] = float(result.standard_error)
variance = {"estimate": float(np.var(skewed))}
for method, name in [("percentile", "percentile"), ("BCa", "bca")]:
    result = stats.bootstrap((skewed,), np.var, n_resamples=200_000, batch=10_000, confidence_level=0.95, method=method, rng=np.random.default_rng(6))
    variance[name] = [float(result.confidence_interval.low), float(result.confidence_interval.high)]
    variance["se"] = float(result.standard_error)
out["bootstrap"] = {"mean": boot, "variance": variance}

n, features = 160, 12
x = rng.poisson(0.5, (n, features)).astype(float)
truth = rng.normal(size=features)
y = (rng.random(n) < 1 / (1 + np.exp(-(x @ truth - 0.3)))).astype(int)
weight = rng.integers(1, 4, n).astype(float)
logistic = {"x": x.tolist(), "y": y.tolist(), "weight": weight.tolist(), "fits": []}
for intercept in [False, True]:
    for l2 in [0.1, 1.0, 25.0]:
        model = LogisticRegression(C=1 / l2, fit_intercept=intercept, solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(x, y, sample_weight=weight)
        logistic["fits"].append({"l2": l2, "intercept": intercept, "weights": model.coef_[0].tolist(), "w0": float(model.intercept_[0]) if intercept else 0.0})
out["logistic"] = logistic
# Unpenalised, with soft labels: statsmodels' GLM takes shares.
share = np.clip(1 / (1 + np.exp(-(x[:, :4] @ truth[:4]))) + rng.normal(0, 0.1, n), 0, 1).round(3)
glm = sm.GLM(share, sm.add_constant(x[:, :4]), family=sm.families.Binomial(), freq_weights=weight).fit(tol=1e-14, maxiter=200, tol_criterion="params")
out["logistic_soft"] = {"share": share.tolist(), "features": 4, "w0": float(glm.params[0]), "weights": glm.params[1:].tolist()}

p = np.round(rng.beta(1.2, 0.8, 240), 2)
outcome = (rng.random(240) < p**1.4).astype(int)


def ece(bins):
    return sum(abs(outcome[b].sum() - p[b].sum()) for b in bins) / len(p)


width = [np.flatnonzero(np.minimum((p * 10).astype(int), 9) == b) for b in range(10)]
order = np.argsort(p, kind="stable")
mass = [order[b * len(p) // 7:(b + 1) * len(p) // 7] for b in range(7)]
out["calibration"] = {"p": p.tolist(), "y": outcome.tolist(), "brier": float(brier_score_loss(outcome, p)), "auc": float(roc_auc_score(outcome, p)),
                      "ece_width_10": float(ece(width)), "ece_mass_7": float(ece(mass))}

pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(out, indent=None, separators=(",", ":")) + "\n")
