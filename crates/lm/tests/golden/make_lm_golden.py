"""Writes what Transformers and TRL make of templates, texts and configurations, for the tests of crate `lm`.

  bytelevel/     a byte-level BPE tokenizer of 600 ids, trained here on shared/data/text/tinyshakespeare.txt
  chat.json      templates rendered: text, assistant spans (characters), ids and assistant masks, or the error
  tokens.json    texts encoded and decoded; the first HH rows as prompt and completion, as TRL tokenises them
  rope.json      inverse frequencies as bit patterns, for configurations in the old and the new spelling

Run: python make_lm_golden.py SHARED_DIR    (transformers 5.23, trl 1.16; from this directory)
The templates are written for these tests, in the manner of the formats they are named after.
"""
import gzip
import json
import sys
from datetime import datetime
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils
from trl.data_utils import _tokenize, common_prefix_length

torch.set_num_threads(1)
HERE, SHARED = Path(__file__).parent, Path(sys.argv[1])
SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
NOW = datetime(2024, 2, 29, 17, 5, 9)

TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml_lines": """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content | trim ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- A leading system message is moved under the date. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role in ["user", "assistant"]) %}
        {{- raise_exception("Only user and assistant roles are supported, not " + message.role + "!") }}
    {%- endif %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"].strip() + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "marked": "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "marked_lines": """{# {% generation %} in a comment is not a tag. #}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation -%}
            {{ message.content }}
            {%- if loop.last %}{{ '<|eos|>' }}{% else %}{{ '<|im_end|>' }}{% endif %}
        {%- endgeneration -%}
        {{ "\\n" }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{% raw %}{% generation %}{% endraw %}{{ '{% endgeneration %}' }}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant' }}
{% endif %}
""",
    "marked_blocks": """{% for message in messages %}
    {% if message.role == 'assistant' %}
    {% generation %}
        {{ message.content }}
    {% endgeneration %}
    {% else %}
[{{ message.role }}] {{ message.content }}
    {% endif %}
{% endfor %}""",
    "tools": """{%- if tools %}
{{- '<tools>\\n' }}
{%- for tool in tools %}
{{- tool | tojson }}
{{- '\\n' ~ tool | tojson(indent=2) }}
{%- endfor %}
{{- '\\n</tools>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '[' ~ message.role.upper() ~ '] ' }}
{%- if message.content is string %}{{- message.content }}{%- endif %}
{%- if message.tool_calls is defined %}
{%- for call in message.tool_calls %}
{{- '<call>' ~ call.function.name ~ '(' }}
{%- for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{{ ', ' if not loop.last }}{%- endfor %}
{{- ')' ~ (call | tojson(ensure_ascii=true, sort_keys=true)) ~ '</call>' }}
{%- endfor %}
{%- endif %}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<no_think>' }}{%- endif %}""",
    "python": """{%- set ns = namespace(seen=[], n=0) -%}
{%- for m in messages -%}
{%- if m.content.startswith('skip') %}{% continue %}{% endif -%}
{%- if m.content.endswith('stop') %}{% break %}{% endif -%}
{{ loop.index0 }}:{{ m.content.split('|')[0].strip() }}:{{ m.content.split('|')[-1].lstrip() }}:{{ m.get('name', 'anon') }}:{{ m.content | length }}:{{ m.content[:3] }}:{{ m.content[::-1] }}
{{ true }} {{ none }} {{ 1.0 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ [1, 'a', none, 2.5] }} {{ {'k': true} }} {{ 'a' in m.content }}
{{ m.content.title() }} {{ m.content | upper | replace('A', 'b') }} {{ '%s-%d' | format('x', 3) }} {{ m.content.rstrip('!') }} {{ ['x', 'y'] | join('+') }}
{%- endfor -%}
{%- macro say(x, y='d') %}<{{ x }}{{ y }}>{% endmacro -%}
{{ say('p') }}{{ say('q', y='r') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[-1].role }}
{{- (messages | map(attribute='role') | list) }}{{ messages | length > 1 }}{{ '' if messages else 'none' }}""",
}
U, A, S = "user", "assistant", "system"


def msgs(*pairs):
    return [{"role": r, "content": c} for r, c in pairs]


CHATS = {
    "one": msgs((U, "Hello there")),
    "turns": msgs((U, "  Hi, who are you? "), (A, "I am a  model. "), (U, "Küche, 日本語, 🙂?"), (A, "Yes:\n\n- one\n- two")),
    "system": msgs((S, "Be brief."), (U, "Why?"), (A, "Because."), (U, "Hm")),
    "bad_order": msgs((U, "a"), (U, "b")),
    "bad_role": msgs(("tool", "x")),
    "empty_answer": msgs((U, "say nothing"), (A, "")),
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \"two\" <numbers> & more: é 🙂",
          "parameters": {"type": "object", "properties": {"a": {"type": "number", "default": 1e-05}, "b": {"type": "number"}}, "required": ["a"], "x": [], "y": {}, "z": None, "t": True, "f": 1e16, "g": 2.0}}}]
TOOL_CHAT = [
    {"role": U, "content": "2+3"},
    {"role": A, "content": None, "reasoning": "add them", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3.5, "c": "é\"\n", "d": [True, None]}}}]},
    {"role": "tool", "content": "5.5", "name": "add"},
]
PYTHON_CHAT = msgs((U, "Alpha beta | gamma!"), (A, "skip me"), (U, "banana"), (A, "full stop"), (U, "never"))


class FrozenClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def bytelevel():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    text = (SHARED / "data/text/tinyshakespeare.txt").read_text().splitlines()
    tok.train_from_iterator(text, trainer)
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1)])])
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>")
    fast.save_pretrained(HERE / "bytelevel")
    # What a saved call leaves behind, and what must not shorten or pad a row.
    path = HERE / "bytelevel/tokenizer.json"
    raw = json.loads(path.read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"}
    path.write_text(json.dumps(raw, ensure_ascii=False))
    return fast


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        for b in int(i).to_bytes(4, "little"):
            h = ((h ^ b) * 0x100000001B3) % 2**64
    return f"{h:016x}"


def chat(tokenizers):
    chat_template_utils.datetime = FrozenClock
    cases = []

    def case(template, name, messages, gen=False, tools=None, **variables):
        out = dict(template=template, chat=name, messages=messages, add_generation_prompt=gen, tools=tools, variables=variables)
        marked = "generation" in TEMPLATES[template] and template.startswith("marked")
        tok = tokenizers["bytelevel"]
        try:
            rendered, spans = chat_template_utils.render_jinja_template(
                [[{k: v for k, v in m.items() if v is not None} for m in messages]], tools=tools, chat_template=TEMPLATES[template],
                add_generation_prompt=gen, return_assistant_tokens_mask=marked, **tok.special_tokens_map, **variables)
            out["text"] = rendered[0]
            if marked:
                # Characters to bytes, and spans with nothing in them are of no use to anyone.
                b = lambda n: len(rendered[0][:n].encode())
                out["spans"] = [[b(s), b(e)] for s, e in spans[0] if e > s]
                for label, t in tokenizers.items():
                    enc = t.apply_chat_template(messages, chat_template=TEMPLATES[template], tools=tools, add_generation_prompt=gen,
                                                return_dict=True, return_assistant_tokens_mask=True, **variables)
                    # The special tokens of the two tokenizers differ, and so does the text.
                    if t.apply_chat_template(messages, chat_template=TEMPLATES[template], tokenize=False, add_generation_prompt=gen) == rendered[0]:
                        out[label] = dict(ids=enc["input_ids"], mask=enc["assistant_masks"])
        except Exception as e:
            out["error"] = str(e)
        cases.append(out)

    for template in TEMPLATES:
        if template in ("tools", "python"):
            continue
        for name, messages in CHATS.items():
            for gen in (False, True):
                case(template, name, messages, gen)
    case("llama3", "dated", CHATS["one"], True, date_string="1 Jan 1970")
    case("tools", "tools", TOOL_CHAT, tools=TOOLS)
    case("tools", "no_tools", TOOL_CHAT, enable_thinking=False)
    case("python", "python", PYTHON_CHAT)
    return dict(now=NOW.isoformat(), now_seconds=int((NOW - datetime(1970, 1, 1)).total_seconds()), templates=TEMPLATES, cases=cases)


TEXTS = ["", " ", "Hello", " Hello", "Once upon a time, there was a little girl named Lily.", "two  spaces\n\nand lines\n", "Küche 日本語 🙂👩‍👧 e\u0301",
         "<s> spelled </s>out", "<|bos|>x<|eos|> y<|im_end|>", "\x00\x7f tab\t", "unk ∮ ☃", "a" * 50]


def tokens(tokenizers):
    rows = [json.loads(line) for line in gzip.open(SHARED / "data/preferences/hh_harmless_base_test.jsonl.gz", "rt")][:256]
    out = {}
    for label, t in tokenizers.items():
        texts = [dict(text=x, ids=t(x)["input_ids"], plain=t(x, add_special_tokens=False)["input_ids"]) for x in TEXTS]
        for entry in texts:
            entry["decoded"] = t.decode(entry["ids"])
            entry["skipped"] = t.decode(entry["ids"], skip_special_tokens=True)
        pairs = []
        for row in rows:
            for side in ("chosen", "rejected"):
                cut = row[side].rindex("\n\nAssistant:") + len("\n\nAssistant:")
                prompt, completion = row[side][:cut], row[side][cut:] + t.eos_token
                prompt_ids, ids = _tokenize(t, prompt)["input_ids"], _tokenize(t, prompt + completion)["input_ids"]
                pairs.append([len(ids), fnv(ids), common_prefix_length(prompt_ids, ids), len(prompt_ids)])
        # Cut inside words: merges cross the boundary.
        cuts = []
        for row in rows[:64]:
            text = row["chosen"]
            for at in (len(text) // 3, len(text) // 2, len(text) - 7):
                prompt_ids, ids = _tokenize(t, text[:at])["input_ids"], _tokenize(t, text)["input_ids"]
                cuts.append([at, common_prefix_length(prompt_ids, ids)])
        out[label] = dict(texts=texts, pairs=pairs, cuts=cuts)
    return out


SMALL = dict(vocab_size=199, hidden_size=64, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
ROPE = [
    ("llama", dict(rope_theta=10000.0)),
    ("llama", dict(rope_theta=500000, rope_scaling=None, head_dim=128)),
    ("llama", dict(rope_parameters=dict(rope_theta=130000.0, rope_type="default"), head_dim=96)),
    ("llama", dict(rope_theta=10000.0, rope_scaling=dict(type="linear", factor=2.5), head_dim=64)),
    ("llama", dict(rope_theta=500000.0, max_position_embeddings=131072, head_dim=128, rope_scaling=dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"))),
    ("llama", dict(max_position_embeddings=131072, head_dim=64, rope_parameters=dict(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3", rope_theta=500000.0))),
    ("llama", dict(rope_theta=10000.0, max_position_embeddings=2048, head_dim=64, rope_scaling=dict(type="dynamic", factor=4.0))),
    ("mistral", dict(rope_theta=1000000.0, head_dim=128)),
    ("qwen2", dict(rope_theta=1000000.0)),
    ("qwen3", dict(rope_parameters=dict(rope_theta=5000000, rope_type="default"))),
    ("phi3", dict(rope_theta=10000.0, partial_rotary_factor=0.75)),
    ("gemma2", dict(head_dim=256)),
    ("olmo2", dict(rope_theta=500000)),
    ("gpt_neox", dict(rotary_pct=0.25, rotary_emb_base=10000)),
    ("gpt_neox", dict(rotary_pct=1.0, rotary_emb_base=25000)),
    ("gpt_neox", dict()),
]
WINDOWS = [
    ("mistral", dict(sliding_window=None)),
    ("mistral", dict()),
    ("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    ("qwen2", dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)),
    ("qwen3", dict(use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=["full_attention", "sliding_attention", "full_attention"])),
    ("gemma2", dict(sliding_window=5)),
    ("gemma2", dict()),
    ("phi3", dict(sliding_window=7)),
    ("phi3", dict()),
]


def write_config(kind, extra):
    # As an old or hand-written file says it: only what is given, under the names given.
    return {"model_type": kind, **SMALL, **extra}


def config_of(raw):
    raw = dict(raw)
    return tf.AutoConfig.for_model(raw.pop("model_type"), **json.loads(json.dumps(raw)))


def rope():
    out = []
    for kind, extra in ROPE:
        raw = write_config(kind, extra)
        config = config_of(raw)
        config._attn_implementation = "eager"
        with torch.device("cpu"):
            model = tf.AutoModelForCausalLM.from_config(config)
        rotary = next(m for n, m in model.named_modules() if n.endswith("rotary_emb"))
        assert rotary.attention_scaling == 1.0
        out.append(dict(config=raw, bits=rotary.inv_freq.view(torch.int32).tolist()))
    windows = []
    for kind, extra in WINDOWS:
        raw = write_config(kind, extra)
        config = config_of(raw)
        model = tf.AutoModelForCausalLM.from_config(config)
        per_layer = []
        for layer in model.model.layers:
            own = getattr(layer.self_attn, "sliding_window", "absent")
            per_layer.append(getattr(config, "sliding_window", None) if own == "absent" else own)
        windows.append(dict(config=raw, windows=per_layer))
    return dict(rope=out, windows=windows)


if __name__ == "__main__":
    tokenizers = {"bytelevel": bytelevel(), "stories260k": tf.AutoTokenizer.from_pretrained(SHARED / "models/stories260k")}
    tokenizers["bytelevel"] = tf.AutoTokenizer.from_pretrained(HERE / "bytelevel")
    for name, value in [("chat", chat(tokenizers)), ("tokens", tokens(tokenizers)), ("rope", rope())]:
        (HERE / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False) + "\n")
        print(name, (HERE / f"{name}.json").stat().st_size)
