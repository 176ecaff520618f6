"""The command line: help without heavy imports, faults in one line, answers for programs."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny
from typer.testing import CliRunner

from hftune import cli, shipped, task
from hftune.errors import UserError

HEAVY = {"torch", "transformers", "datasets", "numpy", "accelerate", "tokenizers", "evaluate", "pyarrow"}


def every_command(group=None, words=()):
    from typer.main import get_command

    group = group or get_command(cli.app)
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, (*words, name))


def test_help_imports_nothing_heavy():
    """In one process, every help there is; then what was imported."""
    commands = [list(words) for words in every_command()]
    assert len(commands) > 8
    code = f"""
import sys
from hftune import cli
for words in {commands!r}:
    try:
        cli.app([*words, "--help"])
    except SystemExit as stop:
        assert not stop.code, words
print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny.ROOT)
    assert done.stderr.strip() == "[]"
    assert done.stdout.count("Usage:") == len(commands)


def test_a_second_check_does_not_load_torch(tmp_path):
    source = tiny.ROOT / "recipes" / "bert.yaml"
    code = f"import sys; from hftune.cli import app; sys.argv=['hftune','check',{str(source)!r},'data.cache_dir={tmp_path}']\ntry:\n app()\nexcept SystemExit as s:\n assert not s.code\nprint('torch' in sys.modules, 'pyarrow' in sys.modules)"
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny.ROOT).stdout
        for _ in range(2)
    )
    assert first.splitlines()[-1] == "True True"
    assert second.splitlines()[-1] == "False False"
    assert first.splitlines()[:-1] == second.splitlines()[:-1]


def hftune(*words, cwd=None, stdin=None):
    """(exit status, standard output, standard error) of a command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "hftune", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        input=stdin,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_fault_is_one_line_and_a_hint(tmp_path):
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(
        "task: mlm\nmodel: {init: bert}\ndata: {train: missing.jsonl}\ntrain: {learning_rat: 3}\noutput: {dir: run}\n"
    )
    status, _out, err = hftune("check", recipe, cwd=tmp_path)
    assert status == 2
    assert "Traceback" not in err
    assert f"{recipe}:4" in err
    assert "learning_rate" in err


def test_recipes_are_found_by_name_and_laid_out(tmp_path):
    names = [name for name, _ in shipped.recipes()]
    assert {"bert", "sentiment"} <= set(names)
    shipped.copy("bert", tmp_path)
    assert (tmp_path / "recipes" / "bert.yaml").read_bytes() == (tiny.ROOT / "recipes" / "bert.yaml").read_bytes()
    assert (tmp_path / "data" / "docs-text" / "train.jsonl").exists()
    assert list((tmp_path / "data" / "LICENSES").iterdir())
    (tmp_path / "recipes" / "bert.yaml").write_text("mine")
    with pytest.raises(UserError, match="other content"):
        shipped.copy("bert", tmp_path)
    with pytest.raises(UserError, match="no recipe named"):
        shipped.find("brt")


def test_whatever_reads_rows_for_long_says_how_far_it_is(tmp_path, tokenizer_folder, monkeypatch):
    """Gigabytes were looked at, tokenized and predicted without a word."""
    monkeypatch.setattr("hftune.report.QUIET", 0)
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1)
    (tmp_path / "mine.yaml").write_text(json.dumps(source))
    commands = {
        "check mine.yaml": ["reading validation: 20 rows", "reading train: 40 rows"],
        "check mine.yaml --overlap": ["reading train: 40 rows"],
        "finetune mine.yaml": ["reading train: 40 rows", "encoding train: 40 rows", "encoding validation: 20 rows"],
        "predict run held.jsonl --output out.jsonl": ["predicting: 20 rows"],
        "tokenizer train tweets.jsonl --output made --vocab-size 400": ["reading: 40 rows"],
    }
    monkeypatch.chdir(tmp_path)
    for command, lines in commands.items():
        done = CliRunner().invoke(cli.app, command.split(), catch_exceptions=False)
        assert not done.exit_code, done.output
        assert set(lines) <= set(done.output.splitlines()), command


def test_every_task_has_a_summary_and_documented_options():
    for name in task.names():
        assert task.summary(name).endswith("."), name
        for field, facts in task.load(name).options.model_fields.items():
            assert facts.description, f"{name}.{field}"


def test_finetune_without_a_recipe_writes_the_one_it_ran(tmp_path, tokenizer_folder):
    import children

    from hftune import commands, recipe

    assert children.child(children.train, tiny.mlm(tmp_path, max_steps=1)) == 0
    rows = tiny.write_rows(tmp_path / "tweets.jsonl", tiny.lines("sentiment-tweets", limit=40))
    source = commands.recipe_source(
        None,
        {"--task": "classify", "--model": str(tmp_path / "run"), "--train": str(rows), "--validation": None},
        str(tmp_path / "tuned"),
    )

    def work():
        commands.train(source, ["train.max_steps=2"], None, 1, 0, False, [], False, True, False)

    assert children.child(work) == 0
    ran = recipe.load(tmp_path / "tuned" / "recipe.yaml")
    assert ran.task.options.label_names == ("negative", "neutral", "positive")
    assert ran.train.max_steps == 2
    # and the recipe it wrote runs by itself, to the same figures
    again = recipe.load(tmp_path / "tuned" / "recipe.yaml", [f"output.dir={tmp_path / 'again'}"])

    def repeat():
        from hftune import run
        from hftune.report import Reporter

        run.train(again, Reporter(silent=True))

    assert children.child(repeat) == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("tuned", "again"))
    assert first == second


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ("a/reviews.csv", "classify-reviews"),
        ("reviews.jsonl.gz", "classify-reviews"),
        ("a/corpus/*.txt", "classify-corpus"),
        ("a/corpus/**/part-*.TXT.xz", "classify-part"),
        ("a/corpus/", "classify-corpus"),
        ("समीक्षा.csv", "classify-समीक्षा"),
        ("owner/data", "classify-data"),
        (".", "classify"),
    ],
)
def test_a_run_without_a_recipe_is_named_for_its_rows_and_never_as_a_pattern(rows, name):
    """`rm -r runs/clm-*` would take other runs away too."""
    from hftune import commands

    given = {"--task": "classify", "--model": "m", "--train": rows, "--validation": None}
    assert commands.recipe_source(None, given, None)["output"]["dir"] == f"runs/{name}"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "chat"),
        ({"prompt": "a", "completion": "b", "id": "1"}, "prompt"),
    ],
    ids=["chat", "prompt"],
)
def test_rows_of_another_kind_are_told_by_their_columns(row, kind, tmp_path):
    """To map them to the columns of the default kind would train on a part of them, or end in the next fault."""
    from hftune import checking, prepare, recipe

    rows = str(tiny.write_rows(tmp_path / "rows.jsonl", [row] * 4))
    made = {
        "task": {"name": "clm"},
        "model": {"path": "m"},
        "data": {"train": rows},
        "output": {"dir": str(tmp_path / "run")},
    }
    found = recipe.from_dict(made)
    with pytest.raises(UserError) as fault:
        checking.check(found)
    assert f"set task.kind: {kind}" in str(fault.value)
    assert "map it" not in str(fault.value)
    clm = task.load("clm")
    with pytest.raises(UserError) as fault:
        prepare.open_split(found, clm, found.task.options, "train")
    assert fault.value.hint == f"set task.kind: {kind}"
    given = recipe.from_dict({**made, "task": {"name": "clm", "kind": "text"}})  # what was said is meant
    with pytest.raises(UserError) as fault:
        prepare.open_split(given, clm, given.task.options, "train")
    assert "map it" in fault.value.hint


def test_pairs_of_which_one_text_is_read_are_told(tmp_path, tokenizer_folder):
    from hftune import checking, recipe

    rows = [{"text": f"a {i}", "text_pair": f"b {i}", "label": "xy"[i % 2]} for i in range(8)]
    made = tiny.classify(tmp_path, str(tokenizer_folder))
    made["data"] = {"train": str(tiny.write_rows(tmp_path / "pairs.jsonl", rows))}
    for said, told in (({}, True), ({"pair": True}, False), ({"pair": False}, False)):
        found = checking.check(recipe.from_dict({**made, "task": made["task"] | said}))
        assert any("text_pair is there too" in line for line in found.get("warnings", [])) == told


def test_a_dry_run_warns_of_no_change_that_its_words_accept(tmp_path, capsys):
    from hftune import commands, recipe

    source = tiny.mlm(tmp_path)
    made = recipe.from_dict(source)
    place = tmp_path / "run"
    place.mkdir()
    (place / "run.json").write_text('{"state": "finished"}')
    (place / "recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    key = "train.weight_decay"
    for fresh, allow, told in ((False, [], True), (True, [], False), (False, [key], False)):
        commands.train(source, [f"{key}=0.5"], None, 1, 0, fresh, allow, True, False, False)
        assert ("a different recipe" in capsys.readouterr().out) == told


def test_a_key_to_be_accepted_is_one_that_recipes_have(tmp_path):
    from hftune import commands, recipe

    made = recipe.from_dict({**tiny.mlm(tmp_path), "model": {"path": str(tmp_path)}})
    for key in (
        "train.learning_rate", "task.mask_rate", "task.prefix", "task.class_weights.a.b", "data.train", "data.train[1].path",
        "tokenizer", "model.path", "model.config.rope_parameters.factor", "peft.r",
    ):  # fmt: skip
        recipe.check_key(key, made, "--allow")
    for key, hint in (
        ("learning_rate", "did you mean train.learning_rate?"), ("train.lr", "did you mean train.learning_rate?"),
        ("train.weight_decy", "did you mean train.weight_decay?"), ("data.train[0].pth", "did you mean"), ("", "the keys of"),
        ("train.learning_rate=1", "did you mean train.learning_rate?"), ("train.seed.more", "train.seed has no keys"), ("task.mask_rat", "mask_rate"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"--allow.*unknown key") as fault:
            commands.train(tiny.mlm(tmp_path), [], None, 1, 0, False, [key], True, False, False)
        assert hint in fault.value.hint, key


def test_an_example_of_a_setting_is_one_that_the_command_takes():
    from hftune import subject

    used = {"eval": subject.MEASURING, "predict": subject.ANSWERING, "generate": subject.ANSWERING}
    for command, names in used.items():
        shown = " ".join(CliRunner().invoke(cli.app, [command, "--help"]).output.split())
        examples = re.findall(r"\b(?:task|data|train|eval|model)\.[a-z_.]+=[^ ]+", shown)
        assert examples
        subject.check_settings(examples, names)


def test_help_says_that_lowercase_takes_marks_away_too():
    """Of Hindi, whose vowels are marks, little is left."""
    from hftune import vocabulary

    made = vocabulary.train(["हिन्दी में लिखा"] * 9, "bpe", 400, lowercase=True)
    assert "ि" not in made.decode(made("हिन्दी")["input_ids"])
    shown = CliRunner().invoke(cli.app, ["tokenizer", "train", "--help"]).output
    assert "strip accents" in " ".join(shown.split())


def test_options_without_a_recipe_must_be_whole():
    from hftune import commands

    with pytest.raises(UserError, match=r"--model, --train must be given\n.*chat and instructions is clm"):
        commands.recipe_source(
            None, {"--task": "classify", "--model": None, "--train": None, "--validation": None}, None
        )


def test_version():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("hftune ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", "r.yaml", "--restarts", "-1"], "--restarts"),
        (["predict", "run", "rows.csv", "--limit", "0"], "--limit"),
        (["predict", "run", "--limit", "-1"], "--limit"),
        (["recipes", "copy", "sentiment", "--to", "rows.csv"], "cannot write rows.csv/"),
        (["tokenizer", "train", "rows.csv", "-o", "new", "--min-frequency", "-1"], "--min-frequency"),
        (["tokenizer", "train", "rows.csv", "-o", "new", "--max-length", "0"], "--max-length"),
        (
            ["tokenizer", "train", "rows.csv", "-o", "new", "--kind", "unigram", "--min-frequency", "5"],
            "--min-frequency: unigram merges no pairs",
        ),
        (["tokenizer", "train", "rows.csv", "-o", "new", "--model", "nope"], "no architecture named 'nope'"),
        (["tokenizer", "train", "rows.csv", "-o", "run"], "run holds something else than a tokenizer"),
        (["tokenizer", "train", "rows.csv", "-o", "rows.csv"], "rows.csv holds something else than a tokenizer"),
        (["tokenizer", "train", "rows.csv", "-o", "new", "data.encodin=cp1252"], "did you mean data.encoding?"),
        (["tokenizer", "train", "rows.csv", "-o", "new", "data.on_error=pass"], "wanted one of stop, skip"),
        (["tokenizer", "train", "data.encoding=cp1252", "-o", "new"], "there is nothing to train on"),
        (["tokenizer", "train", "rows.csv", "-o", "new", "--vocab-size", "9"], "--vocab-size: a vocabulary of 9 is"),
    ],
)
def test_what_makes_no_sense_on_the_command_line_is_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tiny.write_rows(tmp_path / "rows.csv", [])
    rows.write_text("text\none two three\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").touch()
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(cli.app, words)
    told = result.output if isinstance(result.exception, SystemExit) else str(result.exception)
    assert isinstance(result.exception, (SystemExit, UserError))
    assert said in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_reads_its_text_as_a_recipe_would(tmp_path, monkeypatch):
    """What the hints of a broken file say to set can be set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.csv").write_bytes("text;label\ncaf\xe9 na\xefve;1\nbroken\n".encode("cp1252"))
    words = ["tokenizer", "train", "-o", "new", "--vocab-size", "40", "--min-frequency", "1"]
    asked = ["data.train={path: a=b.csv, delimiter: ;}", "data.encoding=cp1252", "data.on_error=skip"]
    for given, hint in (
        (["a=b.csv"], "data.encoding"),
        (["a=b.csv", asked[1]], "delimiter"),
        (asked[:2], "the header has 2"),
        (asked, ""),
    ):
        result = CliRunner().invoke(cli.app, [*words, *given])
        assert (hint in str(result.exception)) if hint else (result.exit_code == 0), result.exception
    assert "1 rows (1 broken)" in result.output
    assert "é" in (tmp_path / "new" / "tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["schema"], ["recipes"], ["recipes", "show", "bert"]], ids=str)
def test_a_full_disk_behind_standard_output_is_one_line(words):
    """Whether what is written fills a buffer before the end or not."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hftune", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: no space left on the disk")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(("words", "status"), [(["schema"], 0), (["check", "bert", "--json", "task.x=1"], 2)], ids=str)
def test_a_closed_standard_output_is_one_that_nobody_reads(words, status):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- <&-', "sh", sys.executable, "-m", "hftune", *words],
        stderr=subprocess.PIPE, text=True, check=False, cwd=tiny.ROOT,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "cp1252"}]
)
def test_files_and_pipes_get_utf_8_whatever_the_locale_says(locale):
    """Figures and answers that were computed already were lost at the first letter that the locale does not know."""
    done = subprocess.run(
        [sys.executable, "-m", "hftune", "metrics"], capture_output=True, check=False, env={**os.environ, **locale}
    )
    assert (done.returncode, "Popović" in done.stdout.decode("utf-8")) == (0, True), done.stderr


LONG = "model.config={id2label: {0: " + "a" * 300 + "}}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", LONG, "--task", "nothing", "--model", "no/model", "--train", "no.csv"], "task.name is"),
        (["eval", LONG], "model.config is the model's own"),
        (["tokenizer", "train", "data.train=[" + "no.txt, " * 40 + "no.txt]", "--output", "made"], "no file or folder"),
        (["generate", "Write a letter. " * 20], "File name too long"),
        (["compare", "a" * 300, "b"], "File name too long"),
    ],
    ids=["finetune", "eval", "tokenizer", "generate", "compare"],
)
def test_a_word_longer_than_a_name_can_be_is_a_setting_or_one_line(words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hftune", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capfd.readouterr().err
    assert (stop.value.code, said in error, "Traceback" in error) == (2, True, False), error


@pytest.mark.parametrize("words", [["eval"], ["report"], ["check"], ["predict"], ["compare", "other"]], ids=str)
def test_what_may_not_be_read_is_one_line(words, tmp_path, monkeypatch, capfd):
    """Whoever runs the tests may be root, who may read everything."""

    def closed(path, *more, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hftune", *words, "of-others/run"])
    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    monkeypatch.undo()
    error = capfd.readouterr().err
    assert (stop.value.code, "Traceback" in error) == (2, False), error
    assert len(error.splitlines()) == 2


def test_without_a_current_folder_a_command_is_one_line(tmp_path):
    """A library of torch's ended the process with a line of its own, where its name was not even said."""
    gone = tmp_path / "gone"
    gone.mkdir()
    words = ["sh", "-c", 'rmdir "$1"; shift; exec "$@"', "sh", str(gone), sys.executable, "-m", "hftune", "env"]
    done = subprocess.run(words, cwd=gone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: the current folder is gone")


def test_on_windows_it_says_where_it_runs(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="Linux and macOS") as found:
        cli._stand()
    assert "WSL" in str(found.value)
