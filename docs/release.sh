#!/usr/bin/env bash
# From a trained model to a release and back: release.sh BASE PROJECT
# PROJECT is what votes_to_model.sh leaves, BASE the model that it started from. `polity` must be in the PATH.
set -euo pipefail
base=$(realpath "$1")
cd "$2"

# What is measured here is small: does the policy move towards what the panel preferred, against the base? A real one measures on prompts
# that no training saw, and asks people.
logprobs() { # MODEL, chosen or rejected: the log-prob of each completion
  sed "s/\"$2\":/\"completion\":/" datasets/v1/train.jsonl | polity --quiet logprobs --model "$1" --input - |
    sed 's/.*"logprobs":\[//; s/\].*//' | awk -F, '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s }'
}
measure() { # RUN: writes measures/RUN.json
  local hash
  hash=$(polity --quiet lineage "runs/$1/model" --json | grep -o '"hash": "[0-9a-f]*"' | head -1 | cut -d'"' -f4)
  paste <(logprobs "runs/$1/model" chosen) <(logprobs "$base" chosen) <(logprobs "runs/$1/model" rejected) <(logprobs "$base" rejected) |
    awk -v model="$hash" '{ right = ($1 - $2 > $3 - $4); sum += right; items = items (NR > 1 ? "," : "") "{\"id\":\"" NR "\",\"sum\":" right "}" }
      END { share = sprintf("%.17g", sum / NR)
            printf "{\"model\":\"%s\",\"suite\":\"v1\",\"measures\":[{\"name\":\"preference_accuracy\",\"unit\":\"share\"," \
                   "\"estimate\":%s,\"low\":0,\"high\":1,\"n\":%d,\"confidence\":0.9,\"range\":[0,1],\"items\":[%s]}]}\n", model, share, NR, items }' \
      > "measures/$1.json"
}
mkdir -p measures

cat > policy.toml <<'POLICY'
name = "ours"
approvals = 1                # somebody else than who trained or releases it

[[criterion]]
id = "moves-towards-the-panel"
measure = "preference_accuracy"
better = "higher"
comparator = "absolute"
limit = 0.5
n_min = 8
POLICY

# Judge: the verdict is in the ledger, bound to model, policy and measures.
measure dpo
polity gate runs/dpo/model --policy policy.toml --measures measures/dpo.json
polity channel production --policy policy.toml

# Two people. Without the second one there is no release.
ann=$(polity --quiet account add ann --role approver)
ben=$(polity --quiet account add ben --role admin)
if POLITY_TOKEN=$ben polity release runs/dpo/model --channel production; then echo "released alone" >&2; exit 1; fi
POLITY_TOKEN=$ann polity approve runs/dpo/model --channel production
POLITY_TOKEN=$ben polity release runs/dpo/model --channel production
head -20 releases/production-1/README.md

# The next one: to a few first, then to everyone.
polity train dpo --model "$base" --data datasets/v1/train.jsonl --out runs/dpo2 --set max_steps=20
measure dpo2
polity gate runs/dpo2/model --policy policy.toml --measures measures/dpo2.json
POLITY_TOKEN=$ann polity approve runs/dpo2/model --channel production
POLITY_TOKEN=$ben polity release runs/dpo2/model --channel production --canary-share 0.1
polity diff production-1 production-2
POLITY_TOKEN=$ben polity release production-2 --channel production

# It disappoints: back to the last good one.
POLITY_TOKEN=$ben polity rollback --channel production
polity releases
polity lineage production-1 --html lineage.html
polity ledger verify
echo "production serves production-1 again"
