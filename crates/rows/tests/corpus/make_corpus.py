"""Writes the corpus: small files that are wrong in one way each, and a few that are odd but right.

The expected outcome of each is in ../it/corpus.rs. The Parquet files are pyarrow's, so that the reader is tried on another
writer's files. Run: python make_corpus.py   (needs pyarrow; made with 26.0.1)
"""
import gzip
import json
import os
import zlib
import pyarrow as pa
import pyarrow.parquet as pq

os.chdir(os.path.dirname(os.path.abspath(__file__)))
GOOD = '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def write(name, content):
    with open(name, "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())


def lines(name, *rows):
    write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# Odd, and right.
write("ok_bom_crlf_blank.jsonl", b"\xef\xbb\xbf" + b"\r\n" + GOOD.replace("\n", "\r\n").encode() + b"  \r\n\r\n" + GOOD.strip().encode())
write("ok_list_laid_out.json", "\ufeff[\n  {\n    \"prompt\": \"a ] } \\\" [\",\n    \"chosen\": \"c\",\n    \"rejected\": \"r\"\n  } ,\n\n " + GOOD + "]\n\n")
write("ok_lines_named_json.json", GOOD * 2)
write("ok_list_named_jsonl.jsonl", "[" + GOOD + "," + GOOD + "]")
with open("ok_two_members.jsonl.gz", "wb") as f:
    f.write(gzip.compress(GOOD.encode(), mtime=0) * 2)

# Nothing in it.
write("empty.jsonl", "")
write("blank.jsonl", "\n \r\n\n")
write("only_bom.jsonl", b"\xef\xbb\xbf")
write("empty_list.json", " [ ]\n")
write("empty.jsonl.gz", gzip.compress(b"", mtime=0))

# Not JSON.
write("malformed_line_3.jsonl", GOOD * 2 + '{"prompt": "p", "chosen": c, "rejected": "r"}\n' + GOOD)
write("single_quotes.jsonl", GOOD + "{'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}\n")
write("nan.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r", "margin": NaN}\n')
write("minus_infinity.jsonl", '{"margin": -Infinity, "prompt": "p", "chosen": "c", "rejected": "r"}\n')
write("python_none.jsonl", '{"prompt": None, "chosen": "c", "rejected": "r"}\n')
write("huge_number.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 1e999}\n')
write("cut_short.jsonl", GOOD * 2 + GOOD[:20])
write("pretty_printed.jsonl", json.dumps(PAIR, indent=2))
write("two_on_a_line.jsonl", GOOD.strip() * 2)
write("trailing_comma.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r",}\n')
write("raw_tab.jsonl", '{"prompt": "p\tq", "chosen": "c", "rejected": "r"}\n')
write("half_surrogate.jsonl", '{"prompt": "\\ud83d", "chosen": "c", "rejected": "r"}\n')
write("deep.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r", "x": ' + "[" * 200 + "]" * 200 + "}\n")
write("not_utf8.jsonl", GOOD.encode() + b'{"prompt": "p\xff"}\n')
write("not_utf8.json", b'[\n{"prompt": "p",\n "chosen": "\xe9t\xe9"}]')
write("nul.jsonl", GOOD + "\0\0\0\n")
write("duplicate_key.jsonl", GOOD + '{"prompt": "p", "chosen": "c", "rejected": "r", "chosen": "d"}\n')
write("duplicate_inner.json", '[{"prompt": "p", "chosen": "c", "rejected": "r",\n "meta": {"a": 1, "a": 1}}]')
write("not_an_object.jsonl", GOOD + "3\n")
write("list_of_texts.json", '["p", "q"]')
write("list_cut_short.json", "[" + GOOD + "," + GOOD)
write("list_cut_inside.json", "[" + GOOD + "," + GOOD[:20])
write("list_trailing_comma.json", "[" + GOOD + ",]")
write("list_no_comma.json", "[" + GOOD + GOOD + "]")
write("list_text_after.json", "[" + GOOD + "]\n" + GOOD)
write("list_malformed_row.json", "[\n" + GOOD + ",\n  {\"prompt\": \"p\",\n   \"chosen\": c}]")
write("list_wrong_bracket.json", '[{"prompt": "p"]]')

# Not rows at all.
write("pairs.csv", "prompt,chosen,rejected\np,c,r\n")
write("zip.jsonl", b"PK\x03\x04" + bytes(20))
write("zstd.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(20))
write("utf16.jsonl", GOOD.encode("utf-16"))
write("lfs_pointer.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
write("web_page.json", "<!DOCTYPE html><html></html>")
write("text.txt", "Once upon a time")
write("text.parquet", "Once upon a time")

# Damaged gzip.
packed = gzip.compress(GOOD.encode() * 50, mtime=0)
write("truncated.jsonl.gz", packed[: len(packed) - 12])
write("header_only.jsonl.gz", packed[:10])
write("wrong_checksum.jsonl.gz", packed[:-8] + b"\0\0\0\0" + packed[-4:])
write("twice.jsonl.gz", gzip.compress(packed, mtime=0))

# JSON, but not rows of the wanted kind.
lines("misspelt.jsonl", PAIR, {"prompt": "p", "choosen": "c", "rejected": "r"})
lines("other_kind.jsonl", {"prompt": "p", "completion": "c", "label": True})
lines("null_chosen.jsonl", {"prompt": "p", "chosen": None, "rejected": "r"})
lines("chosen_number.jsonl", {"prompt": "p", "chosen": 3, "rejected": "r"})
lines("chosen_mixed.jsonl", {"prompt": "p", "chosen": [{"role": "assistant", "content": "c"}], "rejected": "r"})
lines("prompt_mixed.jsonl", {"prompt": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"})
lines("no_messages.jsonl", {"prompt": [], "chosen": [], "rejected": []})
lines("unknown_role.jsonl", {"prompt": [{"role": "human", "content": "p"}], "chosen": [], "rejected": []})
lines("ends_with_user.jsonl", {"chosen": [{"role": "user", "content": "p"}, {"role": "user", "content": "c"}],
                               "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]})
lines("nothing_shared.jsonl", {"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
                               "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]})
lines("margin_text.jsonl", {**PAIR, "margin": "1.5"})
lines("weight_negative.jsonl", {**PAIR, "weight": -0.5})
lines("label_above_one.jsonl", PAIR, {**PAIR, "label": 1.01})
lines("label_boolean.jsonl", {**PAIR, "label": True})
lines("id_negative.jsonl", {"prompt_ids": [1], "chosen_ids": [2, -100], "rejected_ids": [3]})
lines("id_fraction.jsonl", {"prompt_ids": [1.0], "chosen_ids": [2], "rejected_ids": [3]})
lines("id_too_large.jsonl", {"prompt_ids": [1, 4294967296], "chosen_ids": [2], "rejected_ids": [3]})
lines("ids_text.jsonl", {"prompt_ids": "1 2", "chosen_ids": [2], "rejected_ids": [3]})

# Parquet.
message = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
u, a, b = ({"role": r, "content": c} for r, c in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Green.")))
table = pa.table({
    "chosen": pa.array([[u, a], [u, a]], pa.list_(message)),
    "rejected": pa.array([[u, b], [u, b]], pa.large_list(message)),
    "margin": pa.array([0.5, None], pa.float32()),
    "category": pa.array(["tone", "safety"]).dictionary_encode(),
    "id": pa.array([7, 8], pa.uint16()),
})
pq.write_table(table, "ok_messages.parquet", compression="zstd")
pq.write_table(table, "ok_gzip_pages.parquet", compression="gzip")
with open("ok_packed.parquet.gz", "wb") as f:
    f.write(gzip.compress(open("ok_messages.parquet", "rb").read(), mtime=0))
pairs = pa.table({"prompt": ["p"] * 40, "chosen": [f"c{i}" for i in range(40)], "rejected": ["r"] * 40})
pq.write_table(pairs.slice(0, 0), "no_rows.parquet")
pq.write_table(pairs, "whole.tmp", compression="snappy", use_dictionary=False, write_statistics=False)
whole = open("whole.tmp", "rb").read()
os.remove("whole.tmp")
write("truncated.parquet", whole[: len(whole) // 2])
write("magic_only.parquet", b"PAR1")
at = whole.index(b"c0\x02\x00\x00\x00c1") if b"c0\x02\x00\x00\x00c1" in whole else 60
write("damaged_page.parquet", whole[: at - 12] + b"\xff" * 24 + whole[at + 12:])
pq.write_table(pa.table({**{k: [v] for k, v in PAIR.items()}, "margin": [float("nan")]}), "margin_nan.parquet")
pq.write_table(pa.table({"prompt": [b"\xff"], "chosen": ["c"], "rejected": ["r"]}), "prompt_bytes.parquet")
pq.write_table(pa.table({**{k: [v] for k, v in PAIR.items()}, "label": [2.0]}), "label_two.parquet")
pq.write_table(pairs.slice(0, 1), "brotli.parquet", compression="brotli")

# Found by random damage: the dictionary page of the first column claims no values, at which the parquet crate (60.1.0) divides by zero.
found = bytearray(open("ok_messages.parquet", "rb").read())
found[12] ^= 4
write("page_of_no_values.parquet", bytes(found))

# The parquet crate's recursion has no limit: 5000 levels (55 kB) overflow the stack.
nested = pa.int32()
for _ in range(200):
    nested = pa.struct([("a", nested)])
pq.write_table(pa.table({"x": pa.nulls(1, nested)}), "nested_200_deep.parquet", store_schema=False)
