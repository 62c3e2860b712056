#!/usr/bin/env bash
# From prompts to an aligned model, by the panel's votes: votes_to_model.sh MODEL PROMPTS DIR
# MODEL is a language model's directory, PROMPTS a file of rows with `prompt`, DIR a new directory. `polity` must be in the PATH.
set -euo pipefail
model=$(realpath "$1")
prompts=$(realpath "$2")

polity init "$3"
cd "$3"
polity import prompts "$prompts"
polity sample --model "$model" --per-prompt 4 --pairs 2 --set max_new_tokens=48 --set seed=7
polity panel simulate --seed 7
polity agreement --machine-votes
polity freeze v1 --machine-votes
polity export v1 --out datasets/v1

polity train reward --model "$model" --data datasets/v1/train.jsonl --out runs/reward --set max_steps=10
polity train dpo --model "$model" --data datasets/v1/train.jsonl --out runs/dpo --set max_steps=10

polity ledger verify
hash=$(grep -o '"hash": "[0-9a-f]*"' datasets/v1/dataset.json | cut -d'"' -f4)
grep -q "$hash" runs/reward/manifest.json
grep -q "$hash" runs/dpo/manifest.json
polity ledger log | grep ' run ' | grep -q "$hash"
echo "dataset $hash is in both manifests and in the ledger"
