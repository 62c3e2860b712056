"""Loads model directories (and adapters, with PEFT) that Polity saved with Hugging Face Transformers and compares what they
compute.

Run: python load_saved.py CASES.json
CASES.json is a list of {"dir", "kind": "lm" | "reward", "rows": [[token id]], "expect": [[number]], "text"?, "ids"?}:
  expect   of an lm: the logits of each row, flat; of a reward model: one number a row
  base     the model's directory, where `dir` is an adapter's
  text     is to become `ids` by the directory's tokenizer
Prints one JSON line for each: {"dir", "error": largest difference / largest expected number, "missing": [...], "unexpected": [...]}.
"""
import json
import sys

import peft
import torch
import transformers as tf

tf.logging.set_verbosity_error()
torch.set_num_threads(2)
for case in json.load(open(sys.argv[1])):
    auto = tf.AutoModelForCausalLM if case["kind"] == "lm" else tf.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(case.get("base", case["dir"]), dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if "base" in case:
        model = peft.PeftModel.from_pretrained(model, case["dir"])
    model.eval()
    got = []
    for row in case["rows"]:
        with torch.no_grad():
            got.append(model(input_ids=torch.tensor([row])).logits.flatten())
    got, expect = torch.cat(got), torch.tensor([x for row in case["expect"] for x in row])
    assert got.shape == expect.shape, f"{case['dir']}: {got.shape} of {expect.shape}"
    report = dict(dir=case["dir"], error=((got - expect).abs().max() / expect.abs().max()).item(),
                  missing=sorted(info["missing_keys"]), unexpected=sorted(info["unexpected_keys"]))
    if "text" in case:
        tokenizer = tf.AutoTokenizer.from_pretrained(case["dir"])
        report["ids_equal"] = tokenizer(case["text"]).input_ids == case["ids"]
    print(json.dumps(report), flush=True)
