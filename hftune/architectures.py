"""What one architecture does differently: one row of one table, keyed by the configuration's `model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """What an architecture does differently from BERT.

    Attributes:
        padding_side: side on which batches are padded.
        token_type_ids: the tokenizer must give them.
        positions_after_pad: positions are counted from the padding id on, so the table's first rows serve no token.
        decoder_start: the special token that a decoder begins with, "pad" or "eos"; for new configurations.
        names: a common name of a size -> the settings that hold it, where transformers has no name for it in common.
        config: settings of a new configuration that differ from transformers' own defaults.
        options: defaults of task options (only those that the task has and the recipe does not name).
        lora: modules that the methods of low rank change, where peft names none for the architecture.
        ia3: modules that IA3 rescales, where peft names none: keys, values, and last the feed-forward layer's second.
        prefix: it takes keys and values from before the text.
        prompt: it takes virtual tokens before the text.
        by_ends: heads that find their way in a row by its ends of texts, of which no text may hold another; those for labels of
            models that write (T5, BART) do all.
    """

    padding_side: str = "right"
    token_type_ids: bool = False
    positions_after_pad: bool = False
    decoder_start: str | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    lora: tuple[str, ...] = ()
    ia3: tuple[str, ...] = ()
    prefix: bool = True
    prompt: bool = True
    by_ends: tuple[str, ...] = ()

    def own_names(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings under the names that the architecture has for them; its own name wins over a common one."""
        spread = {own: value for name, value in settings.items() for own in self.names.get(name, ())}
        return {**spread, **{name: value for name, value in settings.items() if name not in self.names}}


DEFAULT = Architecture()
ROBERTA = Architecture(positions_after_pad=True, ia3=("key", "value", "output.dense"))
AFTER_PAD = Architecture(positions_after_pad=True)
T5_NAMES = {"num_hidden_layers": ("num_layers", "num_decoder_layers"), "intermediate_size": ("d_ff",)}
BART_NAMES = {
    "num_hidden_layers": ("encoder_layers", "decoder_layers"),
    "num_attention_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
}
# He et al. 2021b: what makes version 3, and without what a DeBERTa knows no order of the tokens between two positions
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DECODER = {"form": "decoder-only"}  # options of tasks from text to text: as prompt and completion
BERT_IA3 = ("key", "value", "output.dense")
BART_LORA, BART_IA3 = ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2")
BART = Architecture(decoder_start="eos", names=BART_NAMES, lora=BART_LORA, ia3=BART_IA3)
MARIAN = Architecture(decoder_start="pad", names=BART_NAMES, lora=BART_LORA, ia3=BART_IA3)
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(["roberta", "xlm-roberta", "camembert", "roberta-prelayernorm"], ROBERTA),
    "longformer": replace(AFTER_PAD, by_ends=("AutoModelForQuestionAnswering", "AutoModelForMultipleChoice")),
    **dict.fromkeys(["mpnet", "xmod", "xlm-roberta-xl", "data2vec-text", "ibert", "luke"], AFTER_PAD),
    **dict.fromkeys(["esm", "lilt", "markuplm", "layoutlmv3"], AFTER_PAD),
    "bert": Architecture(token_type_ids=True),
    "albert": Architecture(
        token_type_ids=True, lora=("query", "value"), ia3=("key", "value", "ffn_output"), prefix=False
    ),
    "distilbert": Architecture(
        names={"intermediate_size": ("hidden_dim",)},
        lora=("q_lin", "v_lin"),
        ia3=("k_lin", "v_lin", "lin2"),
        prefix=False,
    ),
    "electra": Architecture(token_type_ids=True, options={"discriminator_head": "pretraining"}, ia3=BERT_IA3),
    "deberta-v2": Architecture(token_type_ids=True, config=DEBERTA, prefix=False),
    "modernbert": Architecture(lora=("Wqkv",), ia3=("Wqkv", "mlp.Wo"), prefix=False),
    # without segment ids some of XLNet's parameters get no gradient;
    # its attention keeps its weights in no modules, so adapters change the feed-forward layers
    "xlnet": Architecture(
        padding_side="left",
        token_type_ids=True,
        names={"intermediate_size": ("d_inner",)},
        lora=("layer_1", "layer_2"),
        ia3=("layer_2",),
        prefix=False,
        prompt=False,
    ),
    "gpt2": Architecture(names={"intermediate_size": ("n_inner",)}),
    **dict.fromkeys(["gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi"], DEFAULT),  # named in hints
    **dict.fromkeys(
        ["t5", "mt5", "umt5", "longt5"],
        Architecture(decoder_start="pad", names=T5_NAMES, lora=("q", "v"), ia3=("k", "v", "wo")),
    ),
    "switch_transformers": Architecture(decoder_start="pad"),
    **dict.fromkeys(["marian", "pegasus"], MARIAN),
    # mBART's labels end in </s> and the language's code, and the decoder begins with the last of them
    **dict.fromkeys(["bart", "mbart", "m2m_100"], BART),
    "led": Architecture(decoder_start="eos"),
    "fsmt": Architecture(decoder_start="eos", names=BART_NAMES),
}


def architecture(model_type: str) -> Architecture:
    """The row of an architecture; those without one behave like the default."""
    return ARCHITECTURES.get(model_type, DEFAULT)
