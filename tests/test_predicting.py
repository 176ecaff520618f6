"""`hftune predict` for every task: what each makes of a file's rows, or of lines of text."""

import gzip
import io
import json

import children
import fine
import pytest
import test_table
import tiny
import torch
import zoo

from hftune import (
    commands,
    data,
    fill_mask,
    finished,
    generation,
    judging,
    machine,
    measure,
    models,
    predicting,
    recipe,
    run,
    schema,
    store,
    subject,
    task,
)
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Model
from hftune.tasks import span

GAP = "The {} is read from the file ."
TEXTS = {
    "mlm": GAP.format("[MASK]"),
    "plm": GAP.format("<mask>"),
    "span": GAP.format("<extra_id_0>"),
    "denoise": GAP.format("<mask>"),
}
NAMES = {
    "mlm": "bert", "clm": "gpt2", "plm": "xlnet", "span": "t5", "denoise": "bart", "rtd": "electra", "classify": "bert",
    "tag": "roberta", "qa": "bert", "choice": "bert", "translate": "marian", "summarize": "llama",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("kind", task.names())
def test_every_task_predicts_from_a_file_and_from_standard_input(kind, tmp_path, home, monkeypatch):
    source = test_table.source(kind, NAMES[kind], tmp_path, home, max_steps=1)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    writes = "max_new_tokens" in task.load(kind).options.model_fields
    made = recipe.load(tmp_path / "run" / "recipe.yaml", ["task.max_new_tokens=4"] if writes else [])
    rows = [json.loads(line) for line in (home / f"{kind}.jsonl").read_text().splitlines()[:5]]
    if kind in TEXTS:
        rows = [{"text": f"{TEXTS[kind]} {'so ' * i}"} for i in range(5)]
    if kind == "clm":  # a run on text goes on with one
        rows = [{"prompt": row["text"][:40]} for row in rows]
    file = tiny.write_rows(tmp_path / "new.jsonl", rows)
    found = list(predicting.predict_rows(tmp_path / "run", made, str(file), None))
    assert len(found) == 5
    assert all("prediction" in answer for answer in found)
    json.dumps(found, allow_nan=False)
    if models.positions(models.configuration(Model(path=str(tmp_path / "run")))):
        longer = recipe.load(tmp_path / "run" / "recipe.yaml", ["task.max_length=100000"])
        with pytest.raises(UserError, match=r"task\.max_(target_)?length: rows of .* positions"):
            list(predicting.predict_rows(tmp_path / "run", longer, str(file), None))
    options = made.task.options.predicting()
    wanted = task.load(kind).under(options).inputs_only(options)
    shown = [{name: _under(row, source["data"]["columns"].get(name, name)) for name in wanted} for row in rows]
    if len(wanted) > 1:
        lines = [json.dumps(row) for row in rows]
    else:
        texts = [row[wanted[0]] if isinstance(row[wanted[0]], str) else " ".join(row[wanted[0]]) for row in shown]
        lines = [text.replace("\n", " ") for text in texts]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    again = list(predicting.predict_rows(tmp_path / "run", made, "-", None))
    assert len(again) == 5
    if "\\n" not in json.dumps(shown):  # a line of standard input holds no line breaks
        if len(wanted) == 1:  # nor one of a file of text
            plain = tmp_path / "new.txt"
            plain.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            assert list(predicting.predict_rows(tmp_path / "run", made, str(plain), None)) == again
        assert [answer["prediction"] for answer in again] == [answer["prediction"] for answer in found]
    if writes and len(wanted) == 1:
        pieces = []
        texts, _ = generation.generate(tmp_path / "run", made, lines[0], lambda number, piece: pieces.append(piece))
        assert "".join(pieces) == texts[0], "what is shown is the answer"


def _under(row, name):
    """A column, or a part of one."""
    for part in name.split("."):
        row = row[part]
    return row


def test_gaps_are_filled_one_by_one_with_the_likeliest():
    built, tok = zoo.build("bert", zoo.MLM).model.eval(), zoo.tok("bert")
    options = task.load("mlm").options(max_length=32).predicting()
    own = task.load("mlm").under(options)
    rows = [{"text": "[MASK] of the [MASK]"}, {"text": "a much longer row of words , and [MASK]"}]
    made = own.encode(rows, tok, options)
    assert made.pop("truncated") == 0
    raw = [{name: column[i] for name, column in made.items()} for i in range(2)]
    import torch

    with torch.no_grad():
        together = own.predict(built, _tensors(own.collate(raw, tok, options, None)), raw, tok, options)
        alone = own.predict(built, _tensors(own.collate(raw[:1], tok, options, None)), raw[:1], tok, options)
        ids = torch.tensor([raw[0]["input_ids"]])
        best = built(input_ids=ids).logits[0].argmax(-1)[ids[0] == tok.mask_token_id]
    assert [len(answer["fills"]) for answer in together] == [2, 1]
    assert together[0]["prediction"] == alone[0]["prediction"]
    for gap, id in zip(together[0]["fills"], best.tolist(), strict=True):
        assert gap[0]["text"] == tok.decode([id])
        scores = [fill["score"] for fill in gap]
        assert len(scores) == fill_mask.BEST
        assert sorted(scores, reverse=True) == scores
    assert "[MASK]" not in together[1]["prediction"]


def test_tokens_that_read_alike_keep_their_own_probabilities():
    """Tokens such as the parts of a character, which by themselves all read as one."""
    import torch

    built, tok = zoo.build("roberta", zoo.MLM).model.eval(), zoo.tok("roberta")
    options = task.load("mlm").options(max_length=32).predicting()
    own = task.load("mlm").under(options)
    made = own.encode([{"text": f"all of the {tok.mask_token}"}], tok, options)
    raw = [{"input_ids": made["input_ids"][0], "text": made["text"][0]}]
    ids = [id for id in range(len(tok)) if tok.decode([id]) == "\ufffd"][:3]
    with torch.no_grad():
        built.lm_head.bias[ids] = torch.tensor([30.0, 29.0, 28.0])
        [answer] = own.predict(built, _tensors(own.collate(raw, tok, options, None)), raw, tok, options)
        logits = built(input_ids=torch.tensor([raw[0]["input_ids"]])).logits[0]
    chances = logits.double().softmax(-1)[list(raw[0]["input_ids"]).index(tok.mask_token_id)]
    best = chances.topk(fill_mask.BEST)
    assert set(ids) <= set(best.indices.tolist())
    told = [
        (tok.decode([id]), pytest.approx(chance))
        for id, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    assert [(fill["text"], fill["score"]) for fill in answer["fills"][0]] == told


def _tensors(batch):
    import torch

    return {name: torch.as_tensor(value) for name, value in batch.items()}


def test_rows_of_any_length_are_read_ahead_within_bounds_and_numbered_once(tmp_path, home, monkeypatch):
    """512 rows were tokenized at once, however long; and for each window of a long one the windows of all were counted."""
    source = test_table.source("qa", "bert", tmp_path, home, max_steps=1)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml")
    row = {"question": "Where?", "context": "In the town of Borken. " * 60}
    at_once, looks, documents = [], [], store.Encoded.documents
    monkeypatch.setattr(store, "BATCH_CHARS", 3 * len(row["context"]))
    monkeypatch.setattr(store.Encoded, "documents", property(lambda self: looks.append(1) or documents.fget(self)))
    real = predicting.predict
    monkeypatch.setattr(predicting, "predict", lambda *given: at_once.append(len(given[2])) or real(*given))
    file = tiny.write_rows(tmp_path / "new.jsonl", [row] * 8)
    assert len(list(predicting.predict_rows(tmp_path / "run", made, str(file), None))) == 8
    assert at_once == [3, 3, 2]
    assert len(looks) == len(at_once)


def test_a_text_without_a_gap_is_named():
    options = task.load("mlm").options(max_length=8)
    for text, why in (("no gap", "not there"), ("so " * 20 + "[MASK]", "beyond the first 8 tokens")):
        with pytest.raises(UserError, match=why):
            fill_mask.encode([{"text": text}], zoo.tok("bert"), options)


def test_sentinels_take_what_was_written_behind_them():
    assert span.fill([1, 90, 2, 91, 3], [90, 7, 8, 91, 9], [90, 91, 92]) == [1, 7, 8, 2, 9, 3]
    assert span.fill([1, 90, 2, 91, 3], [5, 91, 92, 4], [90, 91, 92]) == [1, 90, 2, 3]


def test_rows_to_be_predicted_may_lack_mapped_answers_and_are_cleaned_as_the_others(
    tokenizer_folder, tmp_path, monkeypatch
):
    texts = [(f"{'good' if i % 2 else 'bad'} {i}", "yx"[i % 2]) for i in range(16)]
    rows = [{"body": {"en": f"<b>{text}</b> &amp; more"}, "stars": label} for text, label in texts]
    source = tiny.classify(tmp_path, str(tokenizer_folder))
    source["data"] = {
        "train": str(tiny.write_rows(tmp_path / "train.jsonl", rows)),
        "columns": {"text": "body.en", "label": "stars"},
        "clean": {"html": True, "min_chars": 3, "deduplicate": True},
    }
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml", [])
    asked = [{"body": {"en": "<i>good</i> &amp; more"}}, {"body": {"en": "good & more"}}, {"body": {"en": "no"}}]
    file = tiny.write_rows(tmp_path / "new.jsonl", asked)
    found = list(predicting.predict_rows(tmp_path / "run", made, str(file), None))
    assert [answer["text"] for answer in found] == ["good & more", "good & more", "no"]
    assert not any("reference" in answer for answer in found)
    monkeypatch.setattr("sys.stdin", io.StringIO("<i>good</i> &amp; more\n"))
    [typed] = predicting.predict_rows(tmp_path / "run", made, "-", None)
    assert typed["scores"] == pytest.approx(found[0]["scores"], abs=1e-6)
    known = tiny.write_rows(tmp_path / "known.jsonl", [rows[0]])
    assert [answer["reference"] for answer in predicting.predict_rows(tmp_path / "run", made, str(known), None)] == [
        "y"
    ]


@pytest.mark.parametrize("where", ["data", "source"])
def test_a_prompt_is_not_looked_for_where_the_text_of_training_was(where, tmp_path):
    rows = [{"body": row["text"][:80]} for row in tiny.lines("docs-text", limit=6)]
    data, columns = str(tiny.write_rows(tmp_path / "rows.jsonl", rows)), {"columns": {"text": "body"}}
    source = tiny.mlm(tmp_path, max_steps=1) | {
        "task": {"name": "clm", "max_length": 32, "max_new_tokens": 2},
        "model": {"init": "gpt2", "config": {"n_embd": 16, "n_layer": 1, "n_head": 2}},
        "tokenizer": {"train": "bpe", "vocab_size": 300},
        "data": {"train": [{"path": data, **columns}]} if where == "source" else {"train": data, **columns},
    }
    source["data"]["cache_dir"] = str(tmp_path / "cache")
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made, file = recipe.load(tmp_path / "run" / "recipe.yaml"), str(tmp_path / "new.jsonl")
    tiny.write_rows(tmp_path / "new.jsonl", [{"prompt": "The file"}])
    [answer] = predicting.predict_rows(tmp_path / "run", made, file, None)
    assert answer["prompt"] == "The file"
    tiny.write_rows(tmp_path / "new.jsonl", rows[:1])
    with pytest.raises(
        UserError, match=r"no column 'prompt'; there are 'body'\n  hint: map it: data\.columns\.prompt=body"
    ):
        list(predicting.predict_rows(tmp_path / "run", made, file, None))
    mapped = recipe.load(tmp_path / "run" / "recipe.yaml", ["data.columns.prompt=body"])
    [answer] = predicting.predict_rows(tmp_path / "run", mapped, file, None)
    assert answer["prompt"] == rows[0]["body"]


def test_predictions_never_cost_a_file_that_was_there(tokenizer_folder, tmp_path, capsys):
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    folder, rows, kept = str(tmp_path / "run"), tmp_path / "tweets.jsonl", tmp_path / "kept.jsonl"
    before = rows.read_text()
    with pytest.raises(UserError, match="is the file to be predicted"):
        commands.predict(folder, str(rows), [], str(rows), None, False)
    with pytest.raises(UserError, match="each row that is to be predicted is answered"):
        commands.predict(folder, str(rows), ["data.on_error=skip"], None, None, False)
    assert rows.read_text() == before
    kept.write_text("good\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(before + "{broken\n")
    with pytest.raises(UserError, match="broken"):
        commands.predict(folder, str(broken), [], str(kept), None, False)
    assert kept.read_text() == "good\n"
    commands.predict(folder, str(rows), [], str(kept), 3, False)
    assert len(kept.read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("kept")) == ["kept.jsonl"]
    (tmp_path / "away").mkdir()
    for target in ("kept.jsonl", "away/new.jsonl"):  # one that is there, and one that is not
        link = tmp_path / "link.jsonl"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        commands.predict(folder, str(rows), [], str(link), 2, False)
        assert link.is_symlink()
        assert len((tmp_path / target).read_text().splitlines()) == 2
    with pytest.raises(UserError, match="is the file to be predicted"):
        commands.predict(folder, str(tmp_path / "away" / "new.jsonl"), [], str(link), None, False)
    for change in ("model.path=other", "model.revision=v2", "tokenizer.path=other"):
        with pytest.raises(UserError, match=f"{change}: .* is the model's own"):
            commands.predict(folder, str(rows), [change], None, None, False)


@pytest.mark.parametrize("kind", ["classify", "tag", "qa", "choice"])
def test_an_answer_that_cannot_be_read_is_left_out_of_its_row_alone(kind, tmp_path, home):
    source = test_table.source(kind, NAMES[kind], tmp_path, home, max_steps=1)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml", [])
    rows = [json.loads(line) for line in (home / f"{kind}.jsonl").read_text().splitlines()[:4]]
    [name] = task.load(kind).answers(made.task.options)
    column = source["data"]["columns"].get(name, name)
    whole = list(
        predicting.predict_rows(tmp_path / "run", made, str(tiny.write_rows(tmp_path / "a.jsonl", rows)), None)
    )
    rows[1][column], rows[2] = "?", {key: value for key, value in rows[2].items() if key != column}
    found = list(
        predicting.predict_rows(tmp_path / "run", made, str(tiny.write_rows(tmp_path / "b.jsonl", rows)), None)
    )
    assert [answer["prediction"] for answer in found] == [answer["prediction"] for answer in whole]
    assert ["reference" in answer for answer in found] == [True, False, False, True]


@pytest.mark.parametrize("kind", ["classify", "tag", "qa", "choice", "translate"])
def test_what_two_models_say_of_a_row_does_not_make_it_two_rows(kind, tmp_path, home):
    import torch

    source = test_table.source(kind, NAMES[kind], tmp_path, home, max_steps=1)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml", ["task.max_new_tokens=4"] if kind == "translate" else [])
    prepared, model = finished.ready(tmp_path / "run", made)
    rows = list(predicting._rows(str(home / f"{kind}.jsonl"), made, prepared.task, prepared.options, 5))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        found.append(predicting.predict(model, prepared, rows, 4096, range(5))[0])
    assert found[0] != found[1]
    assert list(map(judging._row, found[0])) == list(map(judging._row, found[1]))
    assert all("reference" in judging._row(line) for line in found[0])


def test_a_run_in_fp16_predicts_without_a_gpu_too(monkeypatch):
    monkeypatch.setattr(machine, "gpu", lambda: False)
    with machine.autocast(schema.Train(precision="fp16"), torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_files_are_read_as_those_of_training_are(tokenizer_folder, tmp_path, monkeypatch):
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1)
    rows = "".join(f"{i % 2};text {i}, and more\n" for i in range(12))
    for name in ("train", "other"):
        (tmp_path / f"{name}.csv").write_text("stars;body\n" + rows)
    columns = {"text": "body", "label": "stars"}
    source["data"] = {"train": [{"path": str(tmp_path / "train.csv"), "delimiter": ";", "columns": columns}]}
    source["data"]["cache_dir"] = str(tmp_path / "cache")
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made, other = recipe.load(tmp_path / "run" / "recipe.yaml", []), str(tmp_path / "other.csv")
    found = list(predicting.predict_rows(tmp_path / "run", made, other, 5))
    assert [(answer["text"], answer["reference"]) for answer in found][1] == ("text 1, and more", "1")
    (tmp_path / "other.csv.gz").write_bytes(gzip.compress((tmp_path / "other.csv").read_bytes()))
    assert list(predicting.predict_rows(tmp_path / "run", made, other + ".gz", 5)) == found, (
        "an ending is that of the rows"
    )
    figures = measure.evaluate(subject.find(str(tmp_path / "run"), [], data=[other]), Reporter(silent=True))
    assert figures["accuracy"]["count"] == 12
    (tmp_path / "bars.txt").write_text("stars|body\n" + rows.replace(";", "|", 12))
    mapping = f'{{path: {tmp_path / "bars.txt"}, format: csv, delimiter: "|", columns: {{text: body, label: stars}}}}'
    barred = list(predicting.predict_rows(tmp_path / "run", made, mapping, 5))
    assert barred == found
    again = measure.evaluate(subject.find(str(tmp_path / "run"), [], data=[f"x={mapping}"]), Reporter(silent=True))
    assert {name: {**figure, "split": "test"} for name, figure in again.items()} == {
        f"x/{name}": figure for name, figure in figures.items()
    }
    (tmp_path / "commas.csv").write_text('stars,body\n1,"text 1, and more"\n')
    comma = f'{{path: {tmp_path / "commas.csv"}, delimiter: ","}}'  # what it does not say is as in training
    assert [answer["text"] for answer in predicting.predict_rows(tmp_path / "run", made, comma, None)] == [
        "text 1, and more"
    ]
    (tmp_path / "lines.txt").write_text("text 0, and more\ntext 1, and more\n")  # as typed: there is no column body
    lines = list(predicting.predict_rows(tmp_path / "run", made, str(tmp_path / "lines.txt"), None))
    assert [line["prediction"] for line in lines] == [answer["prediction"] for answer in found[:2]]
    for word, said in (("{path: a.csv, delimter: ;}", "delimter: unknown key"), ("", "path is empty text")):
        with pytest.raises(UserError, match=f"^source: {said}"):
            commands.predict(str(tmp_path / "run"), word, [], None, None, False)
    monkeypatch.setattr(models, "load", None)  # no weight is read for what is not there
    with pytest.raises(UserError, match=r"^source: no file or folder") as fault:
        list(predicting.predict_rows(tmp_path / "run", made, str(tmp_path / "none.csv"), None))
    assert "data." not in str(fault.value)


def test_what_stood_before_every_text_in_training_stands_before_new_ones(tokenizer_folder, tmp_path, monkeypatch):
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1)
    train = source["data"]["train"]
    prefix, texts = "the mood of this: ", ["a fine day", "rain and more rain"]
    new = str(tiny.write_rows(tmp_path / "new.jsonl", [{"text": text} for text in texts]))
    whole = str(tiny.write_rows(tmp_path / "whole.jsonl", [{"text": prefix + text} for text in texts]))

    def scores(made, word):
        rows = predicting.predict_rows(tmp_path / "run", made, word, None)
        return [score for answer in rows for score in answer["scores"].values()]

    for sources, stands in (
        ([{"path": train, "prefix": prefix}], True),
        ([{"path": train, "prefix": prefix}, train], False),
    ):
        source["data"]["train"] = sources
        run.train(recipe.from_dict(source), Reporter(silent=True), fresh=True)
        made = recipe.load(tmp_path / "run" / "recipe.yaml", [])
        wanted = scores(made, f"{{path: {whole}, prefix: ''}}")
        assert (scores(made, new) == pytest.approx(wanted)) == stands, "of several kinds of rows none is meant"
        assert scores(made, f"{{path: {new}, prefix: '{prefix}'}}") == pytest.approx(wanted)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
        assert (scores(made, "-") == pytest.approx(wanted)) == stands


def test_rows_are_predicted_in_the_arithmetic_in_which_they_are_measured(tokenizer_folder, tmp_path):
    made = tiny.classify(tmp_path, str(tokenizer_folder), precision="bf16")

    def work():
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # the tests before have made one
        children.train(made)

    assert children.child(work) == 0
    measured = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "validation.jsonl").open()]
    for change, same in ((), True), (["train.precision=fp32"], False):
        found = recipe.load(tmp_path / "run" / "recipe.yaml", change)
        given = list(predicting.predict_rows(tmp_path / "run", found, made["data"]["validation"], None))
        wanted = [pytest.approx(line["scores"], abs=1e-6) for line in measured]
        assert ([line["scores"] for line in given] == wanted) == same


@pytest.mark.parametrize(
    ("kind", "name"), [("mlm", "bert"), ("plm", "xlnet"), ("span", "t5"), ("denoise", "bart"), ("rtd", "electra")]
)
def test_it_stands_before_texts_with_gaps_too(kind, name):
    tok, options = zoo.tok(name), task.load(kind).options(max_length=32).predicting()
    text = f"a word {tok.mask_token or '<extra_id_0>'} a gap"
    plain, behind = fine.rows([{"text": f"the mood of this: {text}"}, {"text": text}])
    behind.prefix = "the mood of this: "
    one, other = (task.load(kind).under(options).encode([row], tok, options) for row in (plain, behind))
    assert list(one["input_ids"][0]) == list(other["input_ids"][0])
    assert other["text"] == [text], "what was given"


def test_text_that_the_tokenizer_does_not_know_is_told(tokenizer_folder, tmp_path, capsys):
    run.train(recipe.from_dict(tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1)), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml", [])
    for text, said in (("a plain text", False), ("これは 何 です か", True)):
        file = tiny.write_rows(tmp_path / "new.jsonl", [{"text": text}] * 3)
        assert len(list(predicting.predict_rows(tmp_path / "run", made, str(file), None, Reporter(as_json=True)))) == 3
        shown = capsys.readouterr().err
        assert ("warning: 100.0% of the tokens are [UNK]" in shown) == said, shown


def test_a_prefix_of_all_training_rows_is_put_before_what_is_predicted(tokenizer_folder, tmp_path, monkeypatch):
    """From a file, typed, or as a set of `hftune eval`, unless the words of the command line say otherwise."""
    source, word = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1), "tweet about it: "
    rows = [{"text": f"row {i} of these", "label": "ab"[i % 2]} for i in range(8)]
    file = str(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    source["data"] |= {"train": [{"path": file, "prefix": word}], "validation": [{"path": file, "prefix": word}]}
    run.train(recipe.from_dict(source), Reporter(silent=True))
    made = recipe.load(tmp_path / "run" / "recipe.yaml", [])

    def scores(given):
        return [answer["scores"] for answer in predicting.predict_rows(tmp_path / "run", made, given, None)]

    def typed(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return scores("-")

    bare = f"{{path: {file}, prefix: ''}}"
    spelled = tiny.write_rows(tmp_path / "spelled.jsonl", [{**row, "text": word + row["text"]} for row in rows])
    assert scores(file) == scores(f"{{path: {spelled}, prefix: ''}}") == typed(*(row["text"] for row in rows))
    assert scores(bare) != scores(file)
    own, again, other = (
        measure.evaluate(subject.find(str(tmp_path / "run"), [], **given), Reporter(silent=True))["loss"]["value"]
        for given in ({}, {"data": [file]}, {"data": [bare]})
    )
    assert own == again != other


@pytest.mark.parametrize("kind", [*TEXTS, "rtd"])
def test_a_prefix_is_put_before_a_text_with_gaps_too(kind):
    """It was learned behind a prefix, and asked without one."""
    options, tokenizer = task.load(kind).options(max_length=32).predicting(), zoo.tok(NAMES[kind])
    own, text, word = task.load(kind).under(options), TEXTS.get(kind, GAP), "note: "
    row, spelled, bare = data.Row({"text": text}), data.Row({"text": word + text}), data.Row({"text": text})
    row.prefix, spelled.prefix, bare.prefix = word, "", ""
    found, wanted, other = (own.encode([one], tokenizer, options) for one in (row, spelled, bare))
    assert found["input_ids"] == wanted["input_ids"] != other["input_ids"]
    assert found["text"] == [text]


def test_rows_are_read_as_training_files_of_a_folder_or_glob(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train-1.csv").write_text("a;b\n1;2\n")
    for named in ("rows", "rows/*", "rows/*.csv"):
        trained = schema.Data(train=[schema.Source(path=str(tmp_path / named), delimiter=";")])
        for path, wanted in (("other.csv", ";"), ("other.csv.gz", ";"), ("other.tsv", None)):
            assert subject.like_training(trained, schema.Source(path=path)).delimiter == wanted, (named, path)
