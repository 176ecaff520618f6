"""Tokenizers of a few hundred entries with the special tokens of XLNet, T5 and BART, made without training."""

from functools import cache
from typing import Any

WORDS = 200
BART = {
    "d_model": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "xlnet": {
        "names": {"pad": "<pad>", "unk": "<unk>", "sep": "<sep>", "cls": "<cls>", "mask": "<mask>"},
        "single": "$A:0 <sep>:0 <cls>:2",
        "side": "left",
    },
    "t5": {"names": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "single": "$A:0 </s>:0", "side": "right"},
    "bart": {
        "names": {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"},
        "single": "<s>:0 $A:0 </s>:0",
        "side": "right",
    },
}


@cache
def tokenizer(layout: str, sentinels: int = 0) -> Any:
    """A tokenizer of words w0 ... w199 and full stops."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    parts = LAYOUTS[layout]
    names = parts["names"].values()
    extra = [f"<extra_id_{i}>" for i in range(sentinels)]
    entries = [*names, *(f"w{i}" for i in range(WORDS)), ".", "[R]", "[S]", "[X]", *reversed(extra)]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pairs = [(name, vocabulary[name]) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=parts["single"], special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=parts["side"],
        extra_special_tokens=extra,
        model_input_names=["input_ids", *["token_type_ids"] * (layout == "xlnet"), "attention_mask"],
        **{f"{name}_token": token for name, token in parts["names"].items()},
    )


def text(words: Any) -> str:
    """The text whose tokens are these words: numbers, or pieces such as "." and "<unk>"."""
    return " ".join(word if isinstance(word, str) else f"w{word % WORDS}" for word in words)


def rows_of(task: Any, tokenizer: Any, options: Any, texts: list[str]) -> Any:
    """Texts as the loop sees them: encoded, with the task's collate."""
    from hftune import steps, store

    encoded = store.in_memory(task.encode([{"text": line} for line in texts], tokenizer, options))
    return steps.Rows(encoded, task, tokenizer, options)


def model_of(init: str, config: dict[str, Any], rows: Any) -> Any:
    """A new model of that architecture."""
    from hftune import models
    from hftune.schema import Model

    settings = rows.task.config(rows.options, rows.tokenizer)
    return models.build(
        Model(init=init, config=config), rows.task.head, rows.tokenizer, settings=settings, seed=0
    ).model


def assert_same_gradients_at_every_split(model: Any, rows: Any) -> None:
    """Through the fused head; see splits."""
    import splits

    from hftune import shortcuts

    assert shortcuts.choose(model, rows.sample(), rows.task, rows.options).head == "fused"
    splits.assert_same(model, rows)
