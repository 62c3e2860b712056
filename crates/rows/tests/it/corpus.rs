//! The files of `tests/corpus`, each wrong in one way, with the whole message a user would see.

use std::fs;
use std::path::{Path, PathBuf};

use polity_rows::{Pair, PreferenceRow, RowsError, open, read};

pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Read as preference rows. `ok_…` files read; of the others, the message without the directory.
#[rustfmt::skip]
const BAD: &[(&str, &str)] = &[
    ("blank.jsonl", ": no rows found; expected at least one"),
    ("brotli.parquet", ", row 0 (counted from 0): unreadable Parquet: Disabled feature at compile time: brotli; write it again with snappy, zstd, gzip or lz4 compression"),
    ("chosen_mixed.jsonl", r#", line 1: `rejected` is plain text; expected a list of messages, as `chosen` is; write text as messages: `[{"role": "user", "content": "…"}]`"#),
    ("chosen_number.jsonl", ", line 1: `chosen` is the number 3; expected text, or a list of messages `{role, content}`"),
    ("cut_short.jsonl", ", line 3, column 20: malformed JSON: EOF while parsing a string; the file was cut short, or a row is spread over several lines: JSONL has one object a line"),
    ("nested_200_deep.parquet", ": unreadable Parquet: columns nested more than 128 deep; is this a file of rows?"),
    ("damaged_page.parquet", ", row 0 (counted from 0): unreadable Parquet: snappy: corrupt input (expected valid offset but got offset 255; dst position: 199); the file is damaged: copy or download it again"),
    ("deep.jsonl", ", line 1, column 180: malformed JSON: recursion limit exceeded; the value is nested too deeply"),
    ("duplicate_inner.json", ", line 2: the key `a` appears twice in one object; expected each key once: remove or rename one"),
    ("duplicate_key.jsonl", ", line 2: the key `chosen` appears twice in one object; expected each key once: remove or rename one"),
    ("empty.jsonl", ": no rows found; expected at least one"),
    ("empty.jsonl.gz", ": no rows found; expected at least one"),
    ("empty_list.json", ": no rows found; expected at least one"),
    ("ends_with_user.jsonl", ", line 1: `chosen` is a conversation that ends with a message of role user; expected one that ends with the assistant's message"),
    ("half_surrogate.jsonl", r#", line 1, column 19: malformed JSON: unexpected end of hex escape; half of a two-part \u escape: a text was cut in the middle of a character"#),
    ("header_only.jsonl.gz", ": the gzip stream ends in the middle; expected a whole gzip file: copy or download it again"),
    ("huge_number.jsonl", ", line 1, column 63: malformed JSON: number out of range; the number does not fit a 64-bit float"),
    ("id_fraction.jsonl", ", line 1: `prompt_ids[0]` is the number 1.0; expected a token id: an integer from 0 to 4294967295"),
    ("id_negative.jsonl", ", line 1: `chosen_ids[1]` is the number -100; expected a token id: an integer from 0 to 4294967295"),
    ("id_too_large.jsonl", ", line 1: `prompt_ids[1]` is the number 4294967296; expected a token id: an integer from 0 to 4294967295"),
    ("ids_text.jsonl", r#", line 1: `prompt_ids` is the text "1 2"; expected a list of token ids"#),
    ("label_above_one.jsonl", ", line 2: `label` is the number 1.01; expected a number from 0 to 1, the share of judges who agree"),
    ("label_boolean.jsonl", ", line 1: `label` is true; expected a number from 0 to 1, the share of judges who agree; a true or false label belongs to an unpaired row, for train kto"),
    ("label_two.parquet", ", row 0 (counted from 0): `label` is the number 2.0; expected a number from 0 to 1, the share of judges who agree"),
    ("lfs_pointer.parquet", ": found a Git LFS pointer, not the file itself{FORMATS}; fetch it with `git lfs pull`"),
    ("list_cut_inside.json", ", line 2, column 21: malformed JSON: EOF while parsing a string; the file was cut short: copy or download it again"),
    ("list_cut_short.json", ", line 3, column 1: malformed JSON: the file ends inside the list; it was cut short: copy or download it again"),
    ("list_malformed_row.json", ", line 5, column 14: malformed JSON: expected value; text goes in double quotes"),
    ("list_no_comma.json", ", line 2, column 1: malformed JSON: expected `,` or `]` after a row"),
    ("list_of_texts.json", r#", line 1: a row is the text "p"; expected an object such as {"prompt": "…"}"#),
    ("list_text_after.json", ", line 3, column 1: malformed JSON: text after the end of the list; a JSON file of rows is one list of objects"),
    ("list_trailing_comma.json", ", line 2, column 2: malformed JSON: a comma with no row beside it; remove the comma"),
    ("list_wrong_bracket.json", ", line 1, column 16: malformed JSON: expected `,` or `}`"),
    ("magic_only.parquet", ": unreadable Parquet: EOF: Parquet file too small. Size is 4 but need 8; the file was cut short: copy or download it again"),
    ("malformed_line_3.jsonl", ", line 3, column 27: malformed JSON: expected value; text goes in double quotes"),
    ("margin_nan.parquet", r#", row 0 (counted from 0): `margin` is the text "NaN"; expected a finite number"#),
    ("margin_text.jsonl", r#", line 1: `margin` is the text "1.5"; expected a finite number"#),
    ("minus_infinity.jsonl", ", line 1, column 13: malformed JSON: invalid number; JSON has no NaN and no infinity: leave the key out or write null"),
    ("misspelt.jsonl", ", line 2: found the keys `prompt`, `choosen`, `rejected`{PREFERENCE}; did you mean `chosen` for `choosen`?"),
    ("nan.jsonl", ", line 1, column 59: malformed JSON: expected value; JSON has no NaN and no infinity: leave the key out or write null"),
    ("no_messages.jsonl", ", line 1: `prompt` is an empty list; expected a list of one or more messages `{role, content}`"),
    ("no_rows.parquet", ": no rows found; expected at least one"),
    ("not_an_object.jsonl", r#", line 2: a row is the number 3; expected an object such as {"prompt": "…"}"#),
    ("not_utf8.json", ", line 3: byte 30 of the text (counted from 0) is 0xe9, which is not UTF-8 here; save the file as UTF-8"),
    ("not_utf8.jsonl", ", line 2: byte 61 of the text (counted from 0) is 0xff, which is not UTF-8 here; save the file as UTF-8"),
    ("nothing_shared.jsonl", ", line 1: `chosen` is a conversation whose first message is not that of `rejected`, or that has only one; expected conversations that begin with the same prompt, or a `prompt` of its own"),
    ("nul.jsonl", ", line 2, column 1: malformed JSON: expected value"),
    ("null_chosen.jsonl", ", line 1: found the keys `prompt`, `chosen` (null), `rejected`{PREFERENCE}; `chosen` is missing"),
    ("only_bom.jsonl", ": no rows found; expected at least one"),
    ("other_kind.jsonl", ", line 1: found the keys `prompt`, `completion`, `label`{PREFERENCE}; this is an unpaired row: train kto takes such rows"),
    ("page_of_no_values.parquet", ", row 0 (counted from 0): unreadable Parquet: attempt to divide by zero; the file is damaged: copy or download it again"),
    ("pairs.csv", r#": found CSV{FORMATS}; convert it, for example with Python: `pandas.read_csv("in.csv").to_json("out.jsonl", orient="records", lines=True)`"#),
    ("pretty_printed.jsonl", ", line 1, column 1: malformed JSON: EOF while parsing an object; the file was cut short, or a row is spread over several lines: JSONL has one object a line"),
    ("prompt_bytes.parquet", ", row 0 (counted from 0): `prompt` is unreadable: bytes that are not UTF-8; expected text, or a list of messages `{role, content}`"),
    ("prompt_mixed.jsonl", r#", line 1: `chosen` is plain text; expected a list of messages, as `prompt` is; write text as messages: `[{"role": "user", "content": "…"}]`"#),
    ("python_none.jsonl", ", line 1, column 12: malformed JSON: expected value; JSON writes true, false and null"),
    ("raw_tab.jsonl", r#", line 1, column 14: malformed JSON: control character (\u0000-\u001F) found while parsing a string; write line breaks inside a string as \n, tabs as \t"#),
    ("single_quotes.jsonl", ", line 2, column 2: malformed JSON: key must be a string; JSON wants double quotes, as Python's json.dumps writes them"),
    ("text.parquet", ": found a file that does not begin with Parquet's `PAR1`{FORMATS}; it is damaged or not Parquet: copy or download it again"),
    ("text.txt", r#": found a file that begins with "Once upon a time"{FORMATS}"#),
    ("trailing_comma.jsonl", ", line 1, column 48: malformed JSON: trailing comma; remove the last comma"),
    ("truncated.jsonl.gz", ", line 44: the gzip stream ends in the middle; expected a whole gzip file: copy or download it again"),
    ("truncated.parquet", ": unreadable Parquet: Invalid Parquet file. Corrupt footer; the file was cut short: copy or download it again"),
    ("twice.jsonl.gz", ": found gzip inside gzip{FORMATS}; unpack it once"),
    ("two_on_a_line.jsonl", ", line 1, column 48: malformed JSON: trailing characters; JSONL has one object a line"),
    ("unknown_role.jsonl", r#", line 1: `prompt[0].role` is the text "human"; expected `system`, `developer`, `user`, `assistant` or `tool`; did you mean "user"?"#),
    ("utf16.jsonl", ": found UTF-16 text{FORMATS}; save it as UTF-8"),
    ("web_page.json", ": found a web page{FORMATS}; download the file itself"),
    ("weight_negative.jsonl", ", line 1: `weight` is the number -0.5; expected a number that is not negative"),
    ("wrong_checksum.jsonl.gz", ", line 50: the gzip stream is damaged (corrupt gzip stream does not have a matching checksum); expected a whole gzip file: copy or download it again"),
    ("zip.jsonl", ": found a zip archive (a spreadsheet is one too){FORMATS}; unpack or export it"),
    ("zstd.jsonl.zst", ": found zstd-packed data{FORMATS}; unpack it with `zstd -d`"),
];

const FORMATS: &str = "; expected JSONL, a JSON list of objects, or Parquet, each also gzip'd";
const PREFERENCE: &str = "; expected a preference row: `prompt_ids` + `chosen_ids` + `rejected_ids`, or `prompt` + `chosen` + `rejected`, or `chosen` + `rejected`";

#[test]
fn every_bad_file_gives_its_one_error() {
    let root = format!("{}/", directory().display());
    for (name, expect) in BAD {
        let error = read::<PreferenceRow>(directory().join(name)).expect_err(name);
        let expect = expect.replace("{FORMATS}", FORMATS).replace("{PREFERENCE}", PREFERENCE);
        assert_eq!(error.to_string().replace(&root, ""), format!("{name}{expect}"));
    }
}

#[test]
fn odd_but_right_files_read() {
    let check = |name: &str, lines: [Option<usize>; 2]| {
        let rows: Vec<PreferenceRow> = read(directory().join(name)).unwrap();
        assert_eq!(rows.iter().map(|row| row.info.line).collect::<Vec<_>>(), lines, "{name}");
        assert_eq!(rows.iter().map(|row| row.info.index).collect::<Vec<_>>(), [0, 1], "{name}");
        assert!(matches!(&rows[1].pair, Pair::Text { .. }), "{name}");
    };
    check("ok_bom_crlf_blank.jsonl", [Some(2), Some(5)]);
    check("ok_list_laid_out.json", [Some(2), Some(8)]);
    check("ok_lines_named_json.json", [Some(1), Some(2)]);
    check("ok_list_named_jsonl.jsonl", [Some(1), Some(2)]);
    check("ok_two_members.jsonl.gz", [Some(1), Some(2)]);
    check("ok_messages.parquet", [None, None]);
    check("ok_gzip_pages.parquet", [None, None]);
    check("ok_packed.parquet.gz", [None, None]);
}

#[test]
fn no_file_of_the_corpus_is_forgotten() {
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = BAD.iter().any(|(bad, _)| *bad == name);
        assert!(
            known || name.starts_with("ok_") || name == "make_corpus.py",
            "{name} has no expected outcome"
        );
    }
}

#[test]
fn lines_after_a_bad_one_can_still_be_read() {
    let outcomes = |name: &str| -> Vec<Result<usize, String>> {
        let rows = open(directory().join(name)).unwrap();
        rows.map(|row| row.map(|row| row.index).map_err(|error| error.to_string())).collect()
    };
    let lines = outcomes("malformed_line_3.jsonl");
    assert_eq!((lines.len(), &lines[1], lines[2].is_err(), &lines[3]), (4, &Ok(1), true, &Ok(3)));
    let list = outcomes("list_of_texts.json");
    assert_eq!((list.len(), list[0].is_err(), list[1].is_err()), (2, true, true));
    // Malformed JSON in a list, or a damaged stream: the end.
    assert_eq!(outcomes("list_malformed_row.json").len(), 2);
    let stream = outcomes("truncated.jsonl.gz");
    assert_eq!(stream.iter().filter(|row| row.is_err()).count(), 1);
    assert!(stream.last().unwrap().is_err());
}

#[test]
fn what_cannot_be_opened_says_so() {
    let error = open(directory().join("no such file.jsonl")).err().unwrap();
    assert!(
        matches!(&error, RowsError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound),
        "{error}"
    );
    let error = open(directory()).err().unwrap();
    assert!(
        matches!(&error, RowsError::Open { source, .. } if source.kind() == std::io::ErrorKind::IsADirectory),
        "{error}"
    );
}
