"""Which files a path means."""

import os

import pytest

from hftune.errors import UserError
from hftune.paths import File, find, is_local


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n")


def fault(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        find(*args, **kwargs)
    return caught.value


def names(*args, **kwargs):
    return [file.path for file in find(*args, **kwargs)]


@pytest.mark.parametrize("path", ["imdb", "owner/name", "owner/name.v2.1", "org-1/a_b"])
def test_hub_ids(here, path):
    assert not is_local(path)
    lay(here, f"{path}/a.txt")
    assert is_local(path), "what exists here is meant"


@pytest.mark.parametrize(
    "path",
    ["a.jsonl", "x/a.csv.gz", "a.zst", "./imdb", "../imdb", "/imdb", "~/imdb", "x/*", "a?", "x/y/z", "a b", "a.jsnl"],
)
def test_paths(here, path):
    assert is_local(path)


def test_a_name_in_a_folder_that_exists_is_a_path(here):
    lay(here, "corpus/train.jsonl")
    assert is_local("corpus/trian")
    assert not is_local("other/trian")


def test_formats_by_suffix(here):
    for name, format, packing in [
        ("a.json", "json", ""),
        ("a.NDJSON", "jsonl", ""),
        ("a.b.csv.gz", "csv", ".gz"),
        ("a.txt.zst", "text", ".zst"),
        ("a.md", "text", ""),
        ("a.parquet", "parquet", ""),
    ]:
        lay(here, name)
        assert find(name) == [File(name, format, packing)]
    lay(here, "a.dat.xz", "a.xyz", "a.tar.gz", "a.parquet.gz")
    assert find("a.dat.xz", "csv") == [File("a.dat.xz", "csv", ".xz")]
    for name in ("a.xyz", "a.dat.xz", "a.tar.gz", "a.parquet.gz"):
        assert "does not tell a known format" in fault(name).message


def test_folders_and_globs_are_sorted_and_deep_and_pass_over_what_is_hidden(here):
    lay(
        here,
        "c/b.jsonl",
        "c/a/z.jsonl",
        "c/a/.hidden.jsonl",
        "c/.git/x.jsonl",
        "c/LICENSE",
        "c/README.md",
        "c/10.jsonl",
    )
    wanted = ["c/10.jsonl", "c/a/z.jsonl", "c/b.jsonl"]
    assert names("c") == names("c/**/*.jsonl") == wanted
    assert names("c/[0-9b]*.jsonl") == ["c/10.jsonl", "c/b.jsonl"]
    assert names(str(here / "c")) == [str(here / name) for name in wanted]


def test_text_folders_keep_their_readme_and_other_suffixes_need_a_format(here):
    lay(here, "docs/README.md", "docs/a.md", "src/a.py", "src/b/c.py")
    assert names("docs") == ["docs/README.md", "docs/a.md"]
    assert "holds no data" in fault("src").message
    assert names("src", "text") == ["src/a.py", "src/b/c.py"]


def test_a_folder_of_save_to_disk(here):
    lay(here, "d/data-00000-of-00001.arrow", "d/dataset_info.json", "d/state.json")
    found = fault("d")
    assert "datasets saved for itself" in found.message
    assert "to_parquet" in found.hint


def test_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    lay(here, "a.txt")
    assert names("~/a.txt") == [str(here / "a.txt")]


def test_a_folder_of_splits(here):
    lay(
        here,
        "d/train-00000.csv",
        "d/train-00001.csv",
        "d/dev.csv",
        "e/train/a.txt",
        "e/test/train.txt",
        "f/x_valid.tsv",
        "f/x_train.tsv",
    )
    assert names("d", split="train") == ["d/train-00000.csv", "d/train-00001.csv"]
    assert names("d", split="validation") == ["d/dev.csv"]
    assert names("e", split="test") == ["e/test/train.txt"], "the folder tells more than the name"
    assert names("f", split="validation") == ["f/x_valid.tsv"]
    found = fault("d", split="test", where="data.test")
    assert "holds no test files" in found.message
    assert "train, validation" in found.hint
    assert found.where == "data.test"
    lay(here, "d/extra.csv")
    assert "which of them are meant" in fault("d", split="train").message
    lay(here, "g/contest.txt", "g/attestation.txt")
    assert len(names("g", split="train")) == 2, "words, not parts of words"


def test_mixed_formats(here):
    lay(here, "d/a.csv", "d/b.jsonl")
    assert "mixes csv and jsonl" in fault("d").message
    assert names("d/*.csv") == ["d/a.csv"]


def test_links_must_not_leave_the_folder(here):
    lay(here, "secret/key.txt", "d/a.txt", "d/sub/b.txt", "secretd/x.txt")
    os.symlink(here / "d/a.txt", here / "d/inside.txt")
    os.symlink(here / "d/sub", here / "d/again")
    assert names("d") == ["d/a.txt", "d/inside.txt", "d/sub/b.txt"]
    os.symlink(here / "d", here / "linked")
    assert len(names("linked")) == 3, "the folder itself may be a link"
    os.symlink(here / "secret/key.txt", here / "d/out.txt")
    assert names("d/out.txt") == ["d/out.txt"], "named outright"
    for path in ("d", "d/*.txt"):
        found = fault(path, where="data.train")
        assert "'d/out.txt' is a link that leaves the folder" in found.message
    os.remove("d/out.txt")
    os.symlink(here / "secretd", here / "d/out")
    assert "'d/out' is a link that leaves the folder" in fault("d").message


def test_what_is_missing_is_told_with_what_is_near(here):
    lay(here, "corpus/train.jsonl", "corpus/test.jsonl")
    found = fault("corpus/trian.jsonl", where="data.train")
    assert found.message == "no file or folder 'corpus/trian.jsonl'"
    assert "corpus/train.jsonl" in found.hint
    assert "corpus" in fault("corpse/train.jsonl").hint
    assert "corpus/t" in fault("corpus/*.csv").hint
    (here / "empty").mkdir()
    assert "empty" in fault("empty/a.csv").hint


def test_what_is_no_plain_file(here):
    os.mkfifo("pipe.txt")
    assert "not a plain file" in fault("pipe.txt").message
    os.symlink("nowhere", "broken.txt")
    assert "no file or folder" in fault("broken.txt").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(here):
    lay(here, "a.txt")
    os.chmod("a.txt", 0)
    with pytest.raises(PermissionError):
        find("a.txt")[0].open()


def test_hostile_names_are_escaped(here):
    name = "a\x1b[31m\u202eb.txt"
    lay(here, name)
    assert File(name, "text").name == repr(name)
    assert (fault("a\x1b[31m.txt").message + fault("b.txt").hint).isprintable()


def test_what_may_not_be_read_is_told_and_not_passed_over(here, monkeypatch):
    """A run took the rest of a folder for all of it. Whoever runs the tests may be root, who may read everything."""
    lay(here, "corpus/a/one.txt", "corpus/b/two.txt")
    listed = os.scandir

    def closed(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert fault("corpus").message == "'corpus/b' cannot be read: Permission denied"
    monkeypatch.setattr(os, "access", lambda path, mode: path != "corpus")
    assert fault("corpus/three.txt").hint == "the folder corpus may not be read"
