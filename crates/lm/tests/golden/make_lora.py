"""Writes golden values of PEFT's LoRA on the tiny models of ../shared/golden, one folder an adapter.

Each folder is what `PeftModel.save_pretrained` writes (adapter_config.json, adapter_model.safetensors; the base model's path is
made relative to the folder), with `lora_golden.safetensors`:
  logits           [n, v] of the three golden sequences (reward: `score` [3], read at each sequence's last token)
  loss             [1]    mean over the n-3 predicted tokens of -logprob (reward: -log sigmoid(score[0] - score[1]))
  grad.<name>             d loss / d <tensor>, by the tensor's name in adapter_model.safetensors
  stepped.<name>          the tensors after two steps of torch.optim.AdamW (lr 1e-2, no decay) on that loss
Run: python make_lora.py SHARED OUT_DIR     (torch 2.15, transformers 5.23, peft 0.21.2; every value float32 on CPU)
"""
import json
import sys
from pathlib import Path
import peft
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

ALL = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
       "gpt2": ["c_attn", "c_proj", "c_fc"], "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
       "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
ADAPTERS = {  # folder: family, reward, settings
    "llama": ("llama", False, dict(target_modules=ALL["llama"])),
    "llama_qv_rslora": ("llama", False, dict(target_modules=["q_proj", "v_proj"], use_rslora=True)),
    "gpt2": ("gpt2", False, dict(target_modules=ALL["gpt2"], fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", False, dict(target_modules=ALL["gpt_neox"])),
    "phi3": ("phi3", False, dict(target_modules=ALL["phi3"])),
    "llama_reward": ("llama", True, dict(target_modules=ALL["llama"])),
}


def write(folder, family, reward, settings, shared, out):
    torch.manual_seed(7)
    base = shared / "golden" / family / ("reward" if reward else "model")
    cls = tf.AutoModelForSequenceClassification if reward else tf.AutoModelForCausalLM
    model = cls.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    config = peft.LoraConfig(task_type="SEQ_CLS" if reward else "CAUSAL_LM", r=3, lora_alpha=5, lora_dropout=0.0, **settings)
    model = peft.get_peft_model(model, config).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = 0.2 * torch.randn(p.shape)
        elif p.requires_grad and "lora_" not in name:
            p.data += 0.1 * torch.randn(p.shape)
    golden = load_file(shared / "golden" / family / "golden.safetensors")
    ids, offsets = golden["ids"], golden["offsets"].tolist()
    rows = [ids[a:b][None] for a, b in zip(offsets, offsets[1:])]

    def forward():
        outs = [model(input_ids=row).logits[0] for row in rows]
        if reward:
            score = torch.stack([o[0] for o in outs])
            return score, -torch.nn.functional.logsigmoid(score[0] - score[1])
        logp = [torch.log_softmax(o[:-1], -1).gather(-1, row[0, 1:, None]).sum() for o, row in zip(outs, rows)]
        return torch.cat(outs), -sum(logp) / (len(ids) - len(rows))

    def tensors():
        return {n: t.detach().clone().contiguous() for n, t in peft.get_peft_model_state_dict(model).items()}

    dest = out / folder
    model.save_pretrained(dest)
    (dest / "README.md").unlink(missing_ok=True)
    saved = json.loads((dest / "adapter_config.json").read_text())
    up = "/".join([".."] * 7)  # from OUT_DIR/FOLDER to the folder that holds the project and shared/
    saved["base_model_name_or_path"] = f"{up}/shared/golden/{family}/{base.name}"
    (dest / "adapter_config.json").write_text(json.dumps(saved, indent=1) + "\n")

    before = tensors()
    output, loss = forward()
    loss.backward()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # The state dict's names are the parameters' without the adapter's own name.
    plain = lambda n: n.replace(".default", "").replace(".modules_to_save", "")
    grads = {plain(n): p.grad.clone().contiguous() for n, p in parameters.items()}
    assert set(grads) == set(before), (set(grads) ^ set(before))
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        forward()[1].backward()
        optimizer.step()
    values = {"score" if reward else "logits": output.detach(), "loss": loss.detach()[None]}
    values |= {f"grad.{n}": g for n, g in grads.items()} | {f"stepped.{n}": t for n, t in tensors().items()}
    save_file({n: t.contiguous() for n, t in values.items()}, dest / "lora_golden.safetensors")


shared, out = Path(sys.argv[1]), Path(sys.argv[2])
for folder, (family, reward, settings) in ADAPTERS.items():
    write(folder, family, reward, settings, shared, out)
    print(folder, sum(f.stat().st_size for f in (out / folder).iterdir()), "bytes")
