#!/usr/bin/env bash
# EleutherAI's lm-evaluation-harness against `polity serve`: bench/lm_eval/run.sh MODEL [POLITY]
#
# Installs the harness from wheels into target/lm_eval (a minute), serves MODEL, and runs two small tasks of our own: log-probs of two
# continuations, and generation up to a stop string. The harness's other tasks fetch their data from the internet; with that,
# --tasks takes their names.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$(realpath "$1")
polity=${2:-target/release/polity}
venv=target/lm_eval
if [ ! -e "$venv/ready" ]; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --no-binary=sqlitedict,rouge-score,word2number 'lm-eval[api]==0.4.13' transformers==5.23.0
  touch "$venv/ready"
fi
said=$(mktemp)
POLITY_API_KEY=sesame "$polity" --json serve --model "served=$model" --listen 127.0.0.1:0 > "$said" &
server=$!
trap 'kill $server; rm -f "$said"' EXIT
until [ -s "$said" ]; do sleep 0.1; done
address=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$said")
OPENAI_API_KEY=sesame HF_HUB_OFFLINE=1 "$venv/bin/lm_eval" --model local-completions \
  --model_args "model=served,base_url=$address/v1/completions,tokenizer=$model,num_concurrent=8,max_length=511" --batch_size 4 \
  --include_path bench/lm_eval --tasks "${TASKS:-stories_next,stories_end}"
