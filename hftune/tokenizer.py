"""Tokenizers: loaded or trained, checked, and saved so that AutoTokenizer gives the same ids again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import hub
from .architectures import architecture
from .encoding import encode_batch, encode_offsets, no_words
from .errors import UserError
from .vocabulary import Again, train

__all__ = ["Again", "check", "encode_batch", "encode_offsets", "fingerprint", "load", "save", "train", "unknown_text"]

VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model", "source.spm", "tekken.json", "bpe.codes",
)  # fmt: skip
FILES = {  # of a tokenizer
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
}  # fmt: skip
WITHOUT_VOCABULARY = {"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"}  # bytes or code points are the ids
UNBOUNDED = 10**9  # transformers says 1e30 where it knows no limit
LENGTH = 512  # model_max_length where neither tokenizer nor configuration knows one
UNKNOWN_BOUND = 0.01  # share of unknown tokens that is worth a warning


def load(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer from a folder or a Hub id, with a model_max_length that the model can take.

    Args:
        path: folder (a model's or a run's), or Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether code that comes with it may run.

    Raises:
        UserError: no such folder, a folder without tokenizer files, a Hub id that cannot be had, an empty tokenizer.
    """
    from transformers import AutoTokenizer

    folder = hub.locate(path, revision, "tokenizer")
    _check_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the libraries below raise whatever they like for a bad file
        raise hub.failure("the tokenizer", path, error, "tokenizer") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"the tokenizer in {path} holds only special tokens", hint="its vocabulary file is missing or empty"
        )
    tokenizer.model_max_length = _usable_length(tokenizer.model_max_length, _config(folder))
    return tokenizer


def _check_folder(folder: Path) -> None:
    """AutoTokenizer makes an empty tokenizer of a folder that holds none."""
    if any((folder / name).exists() for name in VOCABULARIES):
        return
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    if settings.get("tokenizer_class") in WITHOUT_VOCABULARY or "auto_map" in settings:
        return
    raise UserError(
        f"no tokenizer in {folder}: looked for {', '.join(VOCABULARIES)}",
        hint="name a folder that has one in tokenizer.path, or train one with `hftune tokenizer train`",
        where="tokenizer",
    )


def _config(folder: Path) -> dict[str, Any]:
    """The model's configuration as it is written, {} without one."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _usable_length(length: float, config: dict[str, Any]) -> int:
    """The tokenizer's own limit, at most the model's positions."""
    text = config.get("text_config") or config
    found = (text.get(name) for name in ("max_position_embeddings", "n_positions"))
    positions = next((value for value in found if isinstance(value, int) and value > 0), None)
    if positions and architecture(str(text.get("model_type"))).positions_after_pad:
        positions -= 1 + text.get("pad_token_id", 1)
    known = [value for value in (length, positions) if value and value < UNBOUNDED]
    return int(min(known, default=LENGTH))


def save(tokenizer: Any, folder: Path | str) -> None:
    """Write the tokenizer's files; AutoTokenizer gives equal ids, pairs and settings from them.

    Padding side and model inputs that were changed after loading are kept. Truncation and padding of an earlier
    call are not: tokenizer.json would apply them to everything.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    for name in ("padding_side", "truncation_side", "model_input_names", "split_special_tokens"):
        tokenizer.init_kwargs[name] = getattr(tokenizer, name)  # save_pretrained writes those that it finds here
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    tokenizer.model_max_length = _usable_length(tokenizer.model_max_length, settings)
    tokenizer.save_pretrained(folder)


def fingerprint(tokenizer: Any) -> str:
    """A hash of all that decides which ids a text or a conversation gets; equal for a tokenizer and its reloaded copy."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
        content = backend.to_str().replace(':""', ":null")  # no prefix, written in two ways
    else:
        content = repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())))
    settings = (
        sorted(tokenizer.special_tokens_map.items()), list(tokenizer.model_input_names), tokenizer.padding_side,
        tokenizer.truncation_side, tokenizer.chat_template, *(["split"] if tokenizer.split_special_tokens else []),
    )  # fmt: skip
    return hashlib.sha256(f"{content}\n{settings!r}".encode()).hexdigest()[:16]


def check(tokenizer: Any, vocab_rows: int, sample_texts: Sequence[str]) -> list[str]:
    """Whether tokenizer, model and text fit together.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_rows: rows of the model's embedding.
        sample_texts: some of the text that it will see.

    Returns:
        Warnings, one line each.

    Raises:
        UserError: ids without an embedding row.
    """
    if len(tokenizer) > vocab_rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, the model's embedding {vocab_rows} rows",
            hint="use the tokenizer that belongs to the model, or start from new weights with model.init",
            where="tokenizer",
        )
    return unknown_text(tokenizer, encode_batch(tokenizer, sample_texts).values)


def unknown_text(tokenizer: Any, ids: Any) -> list[str]:
    """A warning where many of the ids of a text, special ones aside, stand for what the tokenizer cannot spell."""
    words = ids[~np.isin(ids, no_words(tokenizer))]
    share = float((words == tokenizer.unk_token_id).mean()) if len(words) else 0.0
    if share <= UNKNOWN_BOUND:
        return []
    told = f"{share:.1%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know this text"
    return [
        f"{told}; train one from it, take another, or, where accents are letters of their own, data.clean.unicode=NFC"
    ]
