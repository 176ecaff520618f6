"""hftune inspect shows the very batch that training sees, for every task."""

import fine
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_table import TASKS, source
from tokenizers.pre_tokenizers import ByteLevel

from hftune import inspecting, prepare, recipe, task
from hftune.report import Reporter
from hftune.vocabulary import train

ARCHITECTURE = {"clm": "gpt2", "plm": "xlnet", "span": "t5", "denoise": "bart", "rtd": "electra", "translate": "marian"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", task.names())
def test_every_task_can_be_looked_at(name, tmp_path, home, capsys):
    architecture = ARCHITECTURE.get(name, "t5" if name == "summarize" else "bert")
    made = recipe.from_dict(source(name, architecture, tmp_path, home))
    found = inspecting.show(made, Reporter(), most=2)
    assert len(found["rows"]) == 2
    assert found["step"]["rows"] == 8
    assert all(found["step"]["targets"].values())
    assert "a row of step 0" in capsys.readouterr().out
    assert set(TASKS) == set(task.names())


def test_masked_tokens_stand_beside_what_they_were(tmp_path):
    found = inspecting.show(recipe.from_dict(tiny.mlm(tmp_path)), Reporter(silent=True), most=8)
    pairs = [pair for row in found["rows"] for pair in row["input_ids"]]
    asked = [pair for pair in pairs if pair[1] is not None]
    assert len(asked) == found["step"]["targets"]["loss"]
    assert {"[MASK]"} < {token for token, _ in asked} | {"x"}
    assert "[PAD]" not in {token for token, _ in pairs}
    assert not {"[MASK]", "[CLS]"} & {answer for _, answer in asked}


def test_flags_are_shown_as_the_labels_that_hold(tmp_path, home):
    given = [["cough", "rash"], [], ["fever"], ["cough", "fever", "rash"]]
    # each text is three tokens, as many as there are labels
    rows = [{"text": text, "label": labels} for text, labels in zip("abcd", given, strict=True)]
    made = source("classify", "bert", tmp_path, home, batch_size=4) | {"task": {"name": "classify", "kind": "multi"}}
    made["data"] = {"train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows))}
    found = inspecting.show(recipe.from_dict(made), Reporter(silent=True), most=4)
    shown = {row["input_ids"][1]: row["labels"] for row in found["rows"]}
    assert shown == dict(zip("abcd", given, strict=True))


def test_targets_of_a_text_of_their_own_stand_by_themselves(tmp_path, home):
    """Those of a translation are of its own, also where padding makes both equally long."""
    made = source("translate", "marian", tmp_path, home, batch_size=2)
    rows = [{"source": "a b", "target": "a"}, {"source": "a", "target": "b a"}]
    made["data"] = {"train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows))}
    made["task"] = {"name": "translate"}
    wanted = recipe.from_dict(made)
    tok = prepare.prepare(wanted, ["train"], Reporter(silent=True)).tokenizer
    tokens = [[tok.convert_ids_to_tokens(tok(row[name])["input_ids"]) for name in ("source", "target")] for row in rows]
    found = inspecting.show(wanted, Reporter(silent=True), most=2)
    assert sorted([row["input_ids"], row["labels"]] for row in found["rows"]) == sorted(tokens)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_letters_that_stand_for_bytes_are_read_back(text):
    letters = "".join(piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
    assert inspecting._spelled(letters) == text.translate(inspecting.BLANKS)


def test_letters_of_several_bytes_are_whole_where_a_token_holds_them():
    tok = train(["საქართველო ენა " * 20], "bpe", 320, model_type="gpt2")
    tok.add_tokens(["é<ა>"])
    shown = inspecting.tokens_of(tok, tok("საქართველო ენა é<ა> ж\n")["input_ids"])
    assert "".join(shown) == "საქართველოĠენა" + "Ġ" + "é<ა>" + "Ġ" + "\\xd0\\xb6" + "Ċ"
    bert = fine.tok("bert")
    ids = bert("plain words")["input_ids"]
    assert inspecting.tokens_of(bert, ids) == bert.convert_ids_to_tokens(ids)
