"""Counts prompts, comparisons and votes of the real files, without any of the importer's code: writes imports.json beside itself.

python3 count_imports.py SHARED_DATA
"""

import gzip
import json
import pathlib
import sys

data = pathlib.Path(sys.argv[1])


def turns(transcript):
    parts, at = [], 0
    marks = ("\n\nHuman:", "\n\nAssistant:")
    while at < len(transcript):
        mark = next((m for m in marks if transcript.startswith(m, at)), None)
        if mark:
            parts.append([mark, ""])
            at += len(mark)
        elif parts:
            parts[-1][1] += transcript[at]
            at += 1
        else:
            at += 1
    return [(mark, words.strip()) for mark, words in parts]


def count(pairs):
    """pairs: (prompt, response, response, votes); a response is named by its prompt and itself."""
    prompts, comparisons, votes = set(), set(), set()
    for prompt, one, two, judged in pairs:
        prompts.add(prompt)
        if one == two:
            continue
        pair = (prompt, frozenset((one, two)))
        comparisons.add(pair)
        votes.update((who, pair) for who in judged)
    return len(prompts), len(comparisons), len(votes)


def hh():
    with gzip.open(data / "preferences/hh_harmless_base_test.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
            n = 0
            while n < min(len(chosen), len(rejected)) - 1 and chosen[n] == rejected[n]:
                n += 1
            yield tuple(chosen[:n]), tuple(chosen[n:]), tuple(rejected[n:]), ["file"]


def oasst():
    def walk(node, path):
        path = path + ((node["role"], node["text"]),)
        replies = [r for r in node.get("replies", []) if not r.get("deleted")]
        ranked = [r for r in replies if r["role"] == "assistant" and r.get("rank") is not None]
        for i, one in enumerate(ranked):
            for two in ranked[i + 1 :]:
                name = lambda r: (r["text"], r.get("model_name") or "human")
                yield path, name(one), name(two), ["consensus"]
        for reply in replies:
            yield from walk(reply, path)

    for line in open(data / "preferences/oasst_en_trees.jsonl"):
        yield from walk(json.loads(line)["prompt"], ())


def pandalm():
    for row in json.load(open(data / "preferences/pandalm_testset_v1.json")):
        models = row["cmp_key"].split("_", 1)
        prompt = (row["instruction"], row["input"].strip() and row["input"])
        yield prompt, (row["response1"], models[0]), (row["response2"], models[1]), ["1", "2", "3"]


def mtbench():
    for line in open(data / "annotators/mtbench_human_votes.jsonl"):
        row = json.loads(line)
        yield (row["question_id"], row["turn"]), row["model_a"], row["model_b"], [row["judge"]]


files = [
    ("preferences/hh_harmless_base_test.jsonl.gz", "hh", hh),
    ("preferences/oasst_en_trees.jsonl", "oasst", oasst),
    ("preferences/pandalm_testset_v1.json", "pandalm", pandalm),
    ("annotators/mtbench_human_votes.jsonl", "mt-bench", mtbench),
]
rows = [[path, name, *count(read())] for path, name, read in files]
out = pathlib.Path(__file__).with_name("imports.json")
out.write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n")
print(out.read_text())
