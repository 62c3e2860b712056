#!/usr/bin/env python3
"""Times Polity and TRL on the same rows, in turns on the same machine, and prints a table of ratios (with --json, lines).

    python3 bench/compare.py --env ENV [--precision f32,bf16] [--rounds 2] [sft:tiny dpo:smol135m ...]
    python3 bench/compare.py --env ENV --llama-bench PROGRAM --gguf FILE [--rounds 5]

ENV is the environment that `../shared/peers/setup.sh ENV` makes (about 5 GB). Without names, everything is run: sft, reward, dpo and
generate on `tiny` and `smol135m`; ppo on `tiny`. Needs nothing but the standard library; build the binary first
(`cargo build --release`).

The second form is decoding beside llama.cpp alone: PROGRAM is its `llama-bench`, FILE is `smol135m` of ENV in bf16 by its
`convert_hf_to_gguf.py --outtype bf16`. One sequence, 128 tokens after a prompt of one, two threads, in bf16; and eight at once, which llama-bench
does not do.

What is compared: TRL's time in its steps (its first step included, its start and data preparation not) with Polity's time in its
steps. TRL's generation is timed with the model loaded; Polity's is the process of `polity generate` less one that loads the model and makes a
single token of a single token (the whole process: `--json`, `process_s`). Tokens of both are those of the rows (prompts
counted for both responses of a pair), estimated from the mean over all rows, so a program gains nothing by padding or by sharing.
A round runs TRL in each precision and Polity in each of its own after one another; figures are the best round of each, since these
machines are shared. Each of Polity's is compared with TRL's better one. Targets: what the project asks for in f32 and in bf16.
"""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ["sft:tiny", "reward:tiny", "dpo:tiny", "generate:tiny", "ppo:tiny", "sft:smol135m", "reward:smol135m", "dpo:smol135m",
        "generate:smol135m"]
# Steps timed: of TRL, of Polity. Enough for the mean length of the rows to settle.
STEPS = {"tiny": (8, 24), "smol135m": (4, 8)}
TARGET = {"f32": {"sft:tiny": 1.5, "sft:smol135m": 1.5, "reward:tiny": 1.2, "reward:smol135m": 1.2, "dpo:tiny": 3.0,
                  "dpo:smol135m": 3.0, "generate:tiny": 3.0, "ppo:tiny": 2.0},
          "bf16": {"sft:tiny": 5.0, "sft:smol135m": 3.5, "reward:tiny": 4.0, "reward:smol135m": 3.0, "dpo:tiny": 12.0,
                   "dpo:smol135m": 6.0, "generate:tiny": 10.0, "generate:smol135m": 4.0, "ppo:tiny": 6.0}}
LENGTH, BATCH = 256, 8


def trl(env, stage, model, steps, precision):
    script = ROOT.parent / "shared/peers/trl_bench.py"
    command = [env / "venv/bin/python", script, "--env", env, stage, model, str(steps), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"TRL failed: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows(env):
    return [json.loads(line) for line in open(env / "models/pairs.jsonl")]


def mean_tokens(env, pairs, model, sides):
    """By the peer's tokenizer, once: Polity's own count must not decide."""
    program = ("import json,sys\nfrom transformers import AutoTokenizer as T\nt=T.from_pretrained(sys.argv[1])\n"
               "n=lambda s:len(t(s).input_ids)\nr=[json.loads(l) for l in open(sys.argv[2])]\n"
               "print(json.dumps([sum(min(256,n(x['prompt'])+n(x[k])) for x in r)/len(r) for k in ('chosen','rejected')]))")
    cache = env / f"mean_tokens_{model}.json"
    if not cache.exists():
        command = [env / "venv/bin/python", "-c", program, env / "models" / model, env / "models/pairs.jsonl"]
        cache.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    chosen, rejected = json.loads(cache.read_text())
    return chosen + (rejected if "rejected" in sides else 0)


def short_prompts(env, pairs, model, limit=128):
    program = ("import json,sys\nfrom transformers import AutoTokenizer as T\nt=T.from_pretrained(sys.argv[1])\n"
               "r=[json.loads(l) for l in open(sys.argv[2])]\n"
               "print(json.dumps([i for i,x in enumerate(r) if len(t(x['prompt']).input_ids)<=int(sys.argv[3])]))")
    cache = env / f"short_prompts_{model}.json"
    if not cache.exists():
        command = [env / "venv/bin/python", "-c", program, env / "models" / model, env / "models/pairs.jsonl", str(limit)]
        cache.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [pairs[i] for i in json.loads(cache.read_text())]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(command):
    """Seconds and peak resident GiB of a process."""
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"Polity failed: {' '.join(map(str, command))}\n{text[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def polity(env, binary, stage, model, steps, precision, more):
    pairs, models = rows(env), env / "models"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data, out = folder / "rows.jsonl", folder / "run"
        if stage == "generate":
            write_rows(data, [{"prompt": pair["prompt"][-400:]} for pair in pairs[:BATCH]])
            sets = {"max_new_tokens": 64, "min_new_tokens": 64, "temperature": 1.0, "precision": precision}
            command = [binary, "generate", "--model", models / model, "--input", data, "--output", folder / "out.jsonl"]
            command += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
            process_s, peak = min(run(command) for _ in range(5))
            write_rows(data, [{"ids": [1]}])
            load_s, _ = min(run(command + ["--set", "max_new_tokens=1", "--set", "min_new_tokens=0"]) for _ in range(5))
            return dict(tokens_per_s=BATCH * 64 / (process_s - load_s), peak_gib=peak, process_s=process_s)
        sets = {"per_device_train_batch_size": BATCH, "learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0,
                "logging_steps": 1, "save_steps": 0, "max_steps": steps, "sample_prompts": 0, "seed": 0, "precision": precision}
        if stage == "ppo":
            sets.update(response_length=64, num_ppo_epochs=4, num_mini_batches=1, temperature=0.7, missing_eos_penalty=1.0)
            write_rows(data, [{"prompt": pair["prompt"]} for pair in short_prompts(env, pairs, model)])
            tokens = BATCH * 64
        elif stage == "sft":
            sets.update(max_length=LENGTH, truncation="keep_start")
            write_rows(data, [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
            tokens = BATCH * mean_tokens(env, pairs, model, ["chosen"])
        else:
            # TRL's reward trainer leaves long pairs out, its DPO trainer cuts them.
            sets.update(max_length=LENGTH, truncation="drop" if stage == "reward" else "keep_start")
            write_rows(data, pairs)
            tokens = BATCH * mean_tokens(env, pairs, model, ["chosen", "rejected"])
        base = models / (f"{model}-reward" if stage == "reward" else model)
        command = [binary, "train", stage, "--model", base, "--data", data, "--out", out]
        if stage == "ppo":
            command += ["--reward-model", models / f"{model}-reward"]
        sets.update(more)
        command += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        _, peak = run(command)
        times = [json.loads(line)["time_s"] for line in open(out / "metrics.jsonl")]
        # The log's clock starts with the first step.
        return dict(tokens_per_s=tokens * len(times) / times[-1], peak_gib=peak, seconds_per_step=times[-1] / len(times))


def beside_llama(program, gguf, binary, rounds):
    """Tokens/s of one sequence, in turns, best of the rounds; of Polity the share of weights read too."""
    theirs, ours = [], []
    for _ in range(rounds):
        done = subprocess.run([program, "-m", gguf, "-p", "0", "-n", "128", "-t", "2", "-r", "3", "-o", "json"],
                              capture_output=True, text=True, check=True)
        theirs.append(max(json.loads(done.stdout)[0]["samples_ts"]))
        done = subprocess.run([binary, "bench", "generate", "--shape", "smol135m", "--prompt-length", "1", "--new-tokens", "128", "--batches",
                               "1,8", "--precision", "bf16", "--threads", "2", "--json"], capture_output=True, text=True, check=True)
        ours.append(json.loads(done.stdout)["batches"])
    one = max(round[0]["decode_tokens_per_s"] for round in ours)
    return dict(work="decode:smol135m", llama=max(theirs), polity=one, ratio=one / max(theirs),
                weights_gb_per_s=max(round[0]["weights_gb_per_s"] for round in ours),
                eight=max(round[1]["decode_tokens_per_s"] for round in ours))


def best(figures):
    fastest = max(figures, key=lambda figure: figure["tokens_per_s"])
    return {**fastest, "peak_gib": min(figure["peak_gib"] for figure in figures)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/polity")
    parser.add_argument("--precision", default="f32,bf16", help="of Polity")
    parser.add_argument("--peer-precision", default="fp32,bf16", help="of TRL; the better one counts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Polity's training")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("work", nargs="*", default=WORK)
    args = parser.parse_args()
    env, binary = args.env.resolve(), args.binary.resolve()
    more = dict(pair.split("=", 1) for pair in args.set)
    if args.llama_bench:
        print(json.dumps(beside_llama(args.llama_bench, args.gguf, binary, args.rounds)))
        return
    if not args.json:
        print(f"{'work':22} {'TRL tokens/s':>13} {'':5} {'Polity':>9} {'ratio':>7} {'target':>7}   {'peak GiB: TRL':>13} {'Polity':>7} {'share':>6}")
    for work in args.work:
        stage, model = work.split(":")
        theirs, ours = STEPS[model]
        peer, own = {}, {}
        for _ in range(args.rounds):
            for precision in args.peer_precision.split(","):
                peer.setdefault(precision, []).append(trl(env, stage, model, theirs, precision))
            for precision in args.precision.split(","):
                own.setdefault(precision, []).append(polity(env, binary, stage, model, ours, precision, more))
        peer = {precision: best(figures) for precision, figures in peer.items()}
        better = max(peer, key=lambda precision: peer[precision]["tokens_per_s"])
        theirs, peak = peer[better], min(figure["peak_gib"] for figure in peer.values())
        for precision, figures in own.items():
            figure = best(figures)
            ratio, share = figure["tokens_per_s"] / theirs["tokens_per_s"], figure["peak_gib"] / peak
            if args.json:
                print(json.dumps(dict(work=work, precision=precision, trl=peer, polity=figure, ratio=ratio, memory_share=share)), flush=True)
                continue
            target = TARGET[precision].get(work)
            print(f"{work + ' ' + precision:22} {theirs['tokens_per_s']:13.0f} {better:5} {figure['tokens_per_s']:9.0f} {ratio:6.2f}x "
                  f"{f'{target:.1f}x' if target else '':>7}   {peak:13.2f} {figure['peak_gib']:7.2f} {share:5.0%}", flush=True)


main()
