"""Writes agreement.json beside this file: numbers of krippendorff, irrCAC, statsmodels, scikit-learn, choix, crowd-kit and
scipy on real votes, that tests/agreement_golden.rs compares with. Reads ../../../../../shared/data.

Run: python3 -m venv V && V/bin/pip install krippendorff==0.9.0 irrCAC==0.4.4 statsmodels==0.15.0 scikit-learn==1.9.1 \
         choix==0.4.1 scipy==1.12.0 pandas openpyxl attrs tqdm autograd && V/bin/pip install --no-deps crowd-kit==1.4.2 && V/bin/python make_agreement.py
"""
import collections
import csv
import itertools
import json
import pathlib

import autograd.numpy as anp
import choix
import krippendorff
import numpy as np
import pandas as pd
import statsmodels.api as sm
from autograd import grad
from crowdkit.aggregation import DawidSkene
from irrCAC.raw import CAC
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.sandwich_covariance import cov_cluster

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[4] / "shared/data"
out = {}


def panel(table):
    """Figures of a table: rows annotators, columns items, nan for nothing. Values are level numbers from 0."""
    levels = np.arange(int(np.nanmax(table)) + 1)
    found = {}
    for name in ["nominal", "ordinal", "interval"]:
        found[f"alpha_{name}"] = krippendorff.alpha(table, level_of_measurement=name, value_domain=levels)
    raters = pd.DataFrame(table.T)
    for name, weights in [("ac1", "identity"), ("ac2", "quadratic")]:
        got = CAC(raters, weights=weights, categories=list(levels), digits=14).gwet()["est"]
        found[name] = got["coefficient_value"]
        if name == "ac1":
            found["raw"] = got["pa"]
    counts = np.array([[np.sum(column == k) for k in levels] for column in table.T], float)
    counts = counts[counts.sum(1) >= 2]
    n = counts.sum(1)
    p_i = (counts * (counts - 1)).sum(1) / (n * (n - 1))
    p_k = counts.sum(0) / n.sum()
    found["fleiss"] = (p_i.mean() - (p_k**2).sum()) / (1 - (p_k**2).sum())
    assert abs(p_i.mean() - found["raw"]) < 1e-12, (p_i.mean(), found["raw"])
    if len(set(n)) == 1:
        assert abs(fleiss_kappa(counts) - found["fleiss"]) < 1e-12
    return {k: float(v) for k, v in found.items()}


def dawid_skene(rows, iterations):
    """rows of (item, annotator, level)."""
    model = DawidSkene(n_iter=iterations, tol=-np.inf).fit(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    probas = model.probas_.sort_index()[sorted(model.probas_.columns)]
    return {
        "iterations": iterations,
        "items": [int(i) for i in probas.index],
        "posterior": probas.to_numpy().ravel().tolist(),
        "prior": model.priors_.sort_index().tolist(),
        # errors_ is worker, label -> true label; the last M-step follows the last E-step.
        "errors": [[int(w), int(l), *map(float, row)] for (w, l), row in zip(model.errors_.index, model.errors_[sorted(model.errors_.columns)].to_numpy())],
    }


def minimum(loss, start):
    gradient = grad(loss)
    found = minimize(loss, start, jac=gradient, method="BFGS", options={"gtol": 1e-6, "maxiter": 5000})
    x = found.x
    for _ in range(4):  # Newton's method finishes what the line search cannot.
        h = 1e-6
        hessian = np.array([(gradient(x + h * e) - gradient(x - h * e)) / (2 * h) for e in np.eye(len(x))])
        x = x - np.linalg.lstsq(hessian, gradient(x), rcond=1e-9)[0]
    assert np.abs(gradient(x)).max() < 1e-8, np.abs(gradient(x)).max()
    return x, hessian


def ln_sigmoid(z):
    return -anp.log(1 + anp.exp(-z))


def sigmoid(z):
    return 1 / (1 + anp.exp(-z))


# Krippendorff's textbook example: four coders, twelve units, * for nothing.
text = ["*    *    *    *    *    3    4    1    2    1    1    3    3    *    3",
        "1    *    2    1    3    3    4    3    *    *    *    *    *    *    *",
        "*    *    2    1    3    4    4    *    2    1    1    3    3    *    4"]
book = np.array([[np.nan if v == "*" else int(v) - 1 for v in row.split()] for row in text])
out["textbook"] = {"rows": [[-1 if np.isnan(v) else int(v) for v in row] for row in book], **panel(book)}

# PandaLM: three annotators on 999 comparisons, 0 tie, 1 first, 2 second.
rows = json.loads((DATA / "preferences/pandalm_testset_v1.json").read_text())
pandalm = np.array([[row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)], float)
out["pandalm"] = panel(pandalm)
out["pandalm"]["cohen"] = [cohen_kappa_score(pandalm[a], pandalm[b]) for a, b in [(0, 1), (0, 2), (1, 2)]]
out["pandalm"]["cohen_quadratic"] = [cohen_kappa_score(pandalm[a], pandalm[b], weights="quadratic") for a, b in [(0, 1), (0, 2), (1, 2)]]

# XSTest: two human labels of each completion.
out["xstest"] = []
for name in ["gpt4", "llama2new", "mistralinstruct"]:
    with open(DATA / f"safety/xstest_completions_{name}.csv", newline="") as file:
        labels = [(int(row["annotation_1"][0]) - 1, int(row["annotation_2"][0]) - 1) for row in csv.DictReader(file)]
    table = np.array(labels, float).T
    counts = collections.Counter(labels)
    out["xstest"].append({"name": name, "counts": [[counts[(a, b)] for b in range(3)] for a in range(3)],
                          "cohen": cohen_kappa_score(*table), **panel(table)})

# MT-Bench: canonical orientation is by model name.
votes = [json.loads(line) for line in open(DATA / "annotators/mtbench_human_votes.jsonl")]
models = sorted({v[k] for v in votes for k in ("model_a", "model_b")})
judges = list(dict.fromkeys(v["judge"] for v in votes))
items = {}
entries = {}
for v in votes:
    a, b = sorted([v["model_a"], v["model_b"]])
    item = items.setdefault((v["question_id"], v["turn"], a, b), len(items))
    side = {"tie": 0, "model_a": 1, "model_b": -1}[v["winner"]] * (1 if v["model_a"] == a else -1)
    entries[item, judges.index(v["judge"])] = 1 + side  # The last one stands.
table = np.full((len(judges), len(items)), np.nan)
for (item, judge), level in entries.items():
    table[judge, item] = level
out["mtbench"] = panel(table)
out["mtbench"]["dawid_skene"] = dawid_skene([(i, j, l) for (i, j), l in entries.items()], 10)

n = len(models)
left = np.array([models.index(v["model_a"]) for v in votes])
right = np.array([models.index(v["model_b"]) for v in votes])
score = np.array([{"model_a": 1, "tie": 0.5, "model_b": 0}[v["winner"]] for v in votes])
pairs = []
for l, r, s in zip(left, right, score):
    pairs += [(l, r)] * int(2 * s) + [(r, l)] * int(2 - 2 * s)
half = choix.opt_pairwise(n, pairs, alpha=0, tol=1e-12)
bt = {"models": models, "half": (half - half.mean()).tolist()}

# The same as a logistic regression, the first model as reference, with the left side's intercept and clustered covariance.
design = np.zeros((len(votes), n + 1))
design[np.arange(len(votes)), left] += 1
design[np.arange(len(votes)), right] -= 1
design[:, n] = 1
fit = sm.GLM(score, design[:, 1:], family=sm.families.Binomial()).fit(tol=1e-14)
bt["side"] = fit.params.tolist()
groups = {"prompt": np.array([v["question_id"] for v in votes]), "annotator": np.array([judges.index(v["judge"]) for v in votes])}
groups["both"] = groups["prompt"] * 1000 + groups["annotator"]
cov = {}
for name, group in groups.items():
    c = len(set(group))
    cov[name] = cov_cluster(fit, group, use_correction=False) * c / (c - 1)
    bt[f"se_{name}"] = np.sqrt(np.diag(cov[name])).tolist()
bt["se_model"] = fit.bse.tolist()
bt["se_two_way"] = np.sqrt(np.diag(cov["prompt"] + cov["annotator"] - cov["both"])).tolist()


def tied(kind):
    def loss(x):
        delta, eta = x[left] - x[right], x[n]
        if kind == "rao_kupper":
            win, lose = ln_sigmoid(delta - eta), ln_sigmoid(-delta - eta)
            tie = anp.log(1 - anp.exp(win) - anp.exp(lose))
        else:
            z = anp.log(anp.exp(delta / 2) + anp.exp(-delta / 2) + anp.exp(eta))
            win, lose, tie = delta / 2 - z, -delta / 2 - z, eta - z
        # The last term pins the mean and is 0 at the maximum.
        return -anp.sum((score == 1) * win + (score == 0) * lose + (score == 0.5) * tie) + anp.sum(x[:n]) ** 2
    x, hessian = minimum(loss, np.append(half - half.mean(), 0.5))
    return {"strength": x[:n].tolist(), "tie": float(x[n]), "loss": float(loss(x))}


bt["rao_kupper"], bt["davidson"] = tied("rao_kupper"), tied("davidson")
out["mtbench"]["bradley_terry"] = bt

# Crowd-BT, strengths and reliabilities together: models as items.
judge = groups["annotator"]
TAU, A, B, KAPPA = 2.0, 2.0, 1.0, 1.0


def crowd_loss(x):
    s, g, q = x[:n], x[n::2], x[n + 1::2]
    delta = s[left] - s[right]
    gamma = sigmoid(g[judge])
    ln_left = anp.log(gamma * sigmoid(delta) + (1 - gamma) * sigmoid(q[judge]))
    ln_right = anp.log(gamma * sigmoid(-delta) + (1 - gamma) * sigmoid(-q[judge]))
    prior = -anp.sum(s**2) / (2 * TAU**2) + anp.sum(A * ln_sigmoid(g) + B * ln_sigmoid(-g)) - anp.sum(q**2) / (2 * KAPPA**2)
    return -anp.sum(score * ln_left + (1 - score) * ln_right) - prior


start = np.zeros(n + 2 * len(judges))
start[n::2] = np.log(2)
x, hessian = minimum(crowd_loss, start)
se = np.sqrt(np.diag(np.linalg.inv((hessian + hessian.T) / 2)))
out["mtbench"]["crowd_bt"] = {"x": x.tolist(), "se": se.tolist()}

# Tulu-1: five grades, 16 judges; the sheet's rows as numbers.
sheet = pd.read_excel(DATA / "annotators/tulu1_human_eval.xlsx")
grade = {"a-is-better": 2, "a-is-slightly-better": 1, "tie": 0, "b-is-slightly-better": -1, "b-is-better": -2}
models = sorted(set(sheet.model_a) | set(sheet.model_b))
people = list(dict.fromkeys(sheet.evaluator))
items, rows, entries = {}, [], {}
for row in sheet.sort_values("timestamp", kind="stable").itertuples():
    a, b = sorted([row.model_a, row.model_b])
    item = items.setdefault((row.instance_id, a, b), len(items))
    first_left = row.model_a == a
    strength = grade[row.preference]
    rows.append([item, people.index(row.evaluator), models.index(row.model_a), models.index(row.model_b), strength])
    entries[item, people.index(row.evaluator)] = (strength if first_left else -strength, first_left)
table = np.full((len(people), len(items)), np.nan)
for (item, person), (strength, _) in entries.items():
    table[person, item] = 2 + strength
sides = np.sign(table - 2) + 1
out["tulu"] = {"rows": rows, "models": models, "people": people, "grades": panel(table), "sides": panel(sides)}
out["tulu"]["dawid_skene"] = dawid_skene([(i, p, int(2 + s)) for (i, p), (s, _) in entries.items()], 10)
pairs = []
for _, _, l, r, s in rows:
    share = 2 if s > 0 else 1 if s == 0 else 0
    pairs += [(l, r)] * share + [(r, l)] * (2 - share)
half = choix.opt_pairwise(len(models), pairs, alpha=0, tol=1e-12)
out["tulu"]["bradley_terry"] = (half - half.mean()).tolist()

# Crowd-BT with each comparison's difference integrated out on a fine grid, on the votes for a side.
z = np.linspace(-8, 8, 401)
ln_weight = -z**2 / 2 - np.log(np.exp(-(z**2) / 2).sum())
pair = np.array([i for (i, _) in entries])
person = np.array([p for (_, p) in entries])
strength = np.sign([s for (s, _) in entries.values()])
first_left = np.array([f for (_, f) in entries.values()])
decided = strength != 0
pair, person, strength, first_left = pair[decided], person[decided], strength[decided], first_left[decided]
share = (np.where(first_left, strength, -strength) > 0).astype(float)[:, None]
sign = np.where(first_left, 1, -1)[:, None]
of_pair = np.zeros((len(items), len(pair)))
of_pair[pair, np.arange(len(pair))] = 1


def pairs_loss(x):
    g, q, tau = x[:-1:2], x[1:-1:2], anp.exp(x[-1])
    gamma, side = sigmoid(g)[person][:, None], q[person][:, None]
    delta = sign * tau * z[None, :]
    ln_left = anp.log(gamma * sigmoid(delta) + (1 - gamma) * sigmoid(side))
    ln_right = anp.log(gamma * sigmoid(-delta) + (1 - gamma) * sigmoid(-side))
    node = anp.dot(of_pair, share * ln_left + (1 - share) * ln_right) + ln_weight
    marginal = anp.sum(anp.log(anp.sum(anp.exp(node), 1)))
    prior = anp.sum(A * ln_sigmoid(g) + B * ln_sigmoid(-g)) - anp.sum(q**2) / (2 * KAPPA**2) - (x[-1] - np.log(TAU)) ** 2 / 2
    return -marginal - prior


start = np.zeros(2 * len(people) + 1)
start[:-1:2], start[-1] = np.log(2), np.log(TAU)
x, hessian = minimum(pairs_loss, start)
se = np.sqrt(np.diag(np.linalg.inv((hessian + hessian.T) / 2)))
out["tulu"]["crowd_pairs"] = {"x": x.tolist(), "se": se.tolist()}

# Benjamini-Hochberg.
p = [0.001, 0.2, 0.03, 0.03, 0.9, 0.011, 0.5, 0.04]
out["benjamini_hochberg"] = {"p": p, "adjusted": multipletests(p, method="fdr_bh")[1].tolist()}



def rounded(x):
    """Twelve significant digits: the tests compare to 1e-6 and the file stays small."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    return float(f"{x:.12g}") if isinstance(x, float) else x


(HERE / "agreement.json").write_text(json.dumps(rounded(out), separators=(",", ":")) + "\n")
