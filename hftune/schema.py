"""What a recipe may say: one pydantic model a block; each field's description is its documentation.

Names are the ecosystem's own where the meaning is the same (`learning_rate`, `warmup_ratio`, ...). The block
`task` is checked against the options of the task that it names (see task.Task.options). What a resumed run, an
inheriting recipe or the environment may do to a field stands at the field, as one of the marks below.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_serializer,
    model_validator,
)
from pydantic.config import JsonDict

from . import effect
from .effect import NoEffect, above, only

FREE: JsonDict = {"free": True}  # does not decide the mathematics: a resumed run may change it
FIXED: JsonDict = {"fixed": True}  # decides which weights and moments there are: no resumed run can change it
EXTEND: JsonDict = {"extend": True}  # says how long to train: a resumed run may go on for longer
PATH: JsonDict = {"path": True}  # may hold ${VARIABLE}

LOW_RANK = ("lora", "rslora", "dora", "adalora")
MERGEABLE = (*LOW_RANK, "ia3")  # methods that change weights
PROMPTS = ("prompt", "p-tuning", "prefix")  # methods that put virtual tokens before the text
TRAINED = ["wordpiece", "bpe", "unigram"]  # kinds of tokenizers
WARMING = [  # schedules that begin with a warmup
    "linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay",
]  # fmt: skip


def replaces(*names: str) -> JsonDict:
    """Mark of a field that, given later (by the inheriting recipe, the command line), unsets its rivals."""
    return {"replaces": list(names)}


def _null_is_empty(value: Any) -> Any:
    return {} if value is None else value


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Duration = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[smhd]$", examples=["90s", "30m", "8h"])]
Folder = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]  # that is written to
Settings = Annotated[dict[str, Any], BeforeValidator(_null_is_empty)]
Names = Annotated[dict[str, str], BeforeValidator(_null_is_empty)]


def _one_to_list(value: Any) -> Any:
    """A single source may be written without a list, and a path without a mapping."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


class Block(BaseModel):
    """Base of all blocks: unknown keys and types that merely resemble the wanted one are faults; frozen,
    so a recipe cannot drift while it runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    _effect = model_validator(mode="after")(effect.refuse)


class TaskBlock(Block):
    """Name of a task, and its options as the task's own model has checked them."""

    name: str
    options: SerializeAsAny[BaseModel]

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump()}


class Model(Block):
    """Where the weights come from: exactly one of `init`, `path`, or `encoder` with `decoder`."""

    init: str | None = Field(
        None,
        description="architecture to start from random weights, e.g. bert, gpt2, t5",
        json_schema_extra=FIXED | replaces("path", "encoder", "decoder", "revision"),
    )
    path: str | None = Field(
        None,
        description="model folder or Hub id to start from",
        json_schema_extra=PATH | replaces("init", "encoder", "decoder", "revision"),
    )
    encoder: str | None = Field(
        None,
        description="folder or Hub id that warm-starts the encoder of an encoder-decoder",
        json_schema_extra=PATH | replaces("init", "path"),
    )
    decoder: str | None = Field(
        None,
        description="folder or Hub id that warm-starts its decoder",
        json_schema_extra=PATH | replaces("init", "path"),
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    config: Settings = Field({}, description="settings of the model's configuration to override")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="attention implementation; auto lets transformers choose"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Model":
        given = [bool(self.init), bool(self.path), bool(self.encoder or self.decoder)]
        if sum(given) != 1 or bool(self.encoder) != bool(self.decoder):
            raise ValueError("give exactly one of init, path, or encoder with decoder")
        return self


class Tokenizer(Block):
    """Loaded from `path`, trained from the corpus by `train`, or (neither) taken from the model's folder."""

    path: str | None = Field(
        None,
        description="tokenizer folder or Hub id; default: the model's own",
        json_schema_extra=PATH | FIXED | replaces("train", "revision"),
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub", json_schema_extra=FIXED)
    train: Literal["wordpiece", "bpe", "unigram"] | None = Field(
        None,
        description="kind to train from the training text",
        json_schema_extra=FIXED | replaces("path", "revision"),
    )
    vocab_size: Annotated[int, Field(gt=0, le=10_000_000)] = Field(
        8000,
        description="size of a trained vocabulary, special tokens included",
        json_schema_extra=FIXED | only(train=TRAINED),
    )
    lowercase: bool = Field(
        False,
        description="lowercase when training (and strip accents, as BERT's uncased does)",
        json_schema_extra=FIXED | only(train=TRAINED),
    )
    min_frequency: Positive = Field(
        2,
        description="minimum count of a pair to be merged when training wordpiece or bpe",
        json_schema_extra=FIXED | only(train=["wordpiece", "bpe"]),
    )
    chat_template: str | None = Field(None, description="Jinja template for chat rows, or a file that holds it")

    @model_validator(mode="after")
    def _one_origin(self) -> "Tokenizer":
        if self.path and self.train:
            raise ValueError("give path or train, not both")
        return self


class Source(Block):
    """One set of rows: a file, glob or folder (json, jsonl, csv, tsv, parquet, txt; .gz .bz2 .xz .zst), or a Hub id."""

    path: Text = Field(description="file, glob, folder, or Hub id", json_schema_extra=PATH)
    name: str | None = Field(None, description="configuration of a Hub data set")
    split: str | None = Field(
        None, description="split of a Hub data set or of a folder whose files are named for splits; default: as here"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    format: Literal["json", "jsonl", "csv", "tsv", "parquet", "text"] | None = Field(
        None, description="format, where the file name does not say"
    )
    field: str | None = Field(None, description="key under which a JSON file holds its list of rows")
    columns: Names = Field({}, description="NAME: COLUMN pairs; the task's name for a column of this source")
    prefix: str = Field(
        "",
        description="text put before each input of this source, as T5's multi-task mixture does; one that all training sources "
        "have is put before what is predicted or generated for, too",
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="how often each row of this source is seen in an epoch; 0.5: a new random half each time"
    )
    limit: Positive | None = Field(None, description="use only this many rows from the start")
    quotes: bool = Field(True, description="csv, tsv: double quotes enclose fields; false: they are part of the text")
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = Field(
        None, description="csv, tsv: field separator; default: comma, tab"
    )
    sample_by: Literal["line", "paragraph", "document"] | None = Field(
        None, description="text: what makes a row (paragraph: up to a blank line); default: line, of .md files document"
    )


class Clean(Block):
    """Cleaning of text, each step optional; what each removed is counted and reported."""

    html: bool = Field(False, description="remove HTML tags and decode entities")
    control: bool = Field(False, description="remove control characters other than newline and tab")
    unicode: Literal["NFC", "NFKC"] | None = Field(None, description="normalise Unicode")
    whitespace: bool = Field(False, description="collapse runs of spaces and of blank lines, and trim")
    min_chars: Count = Field(0, description="drop rows with fewer characters")
    deduplicate: bool = Field(False, description="drop exact duplicates")


Sources = Annotated[
    list[Source],
    BeforeValidator(_one_to_list, json_schema_input_type=Text | Source | list[Text | Source]),
    Field(min_length=1),
]


class Data(Block):
    """The rows: where from, which columns, how cleaned."""

    train: Sources | None = Field(None, description="source or list of sources to train on", json_schema_extra=PATH)
    validation: Sources | None = Field(
        None,
        description="source or list of sources to validate on",
        json_schema_extra=PATH | replaces("validation_fraction"),
    )
    test: Sources | None = Field(
        None, description="source or list of sources for `hftune eval`", json_schema_extra=PATH | FREE
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the training rows held out, chosen by a hash of the row so that it never moves",
        json_schema_extra=replaces("validation"),
    )
    columns: Names = Field({}, description="NAME: COLUMN pairs for all sources")
    clean: Clean = Field(Clean(), description="cleaning of text")
    encoding: str = Field(
        "utf-8", description="encoding of text files; one that begins with the mark of UTF-8 is read as UTF-8"
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="what to do with a broken row, e.g. one without a label"
    )
    max_errors: Count = Field(
        100,
        description="with on_error: skip, the most broken rows to pass over; one more stops the reading",
        json_schema_extra=only(on_error=["skip"]),
    )
    num_workers: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="processes that prepare batches beside the training process", json_schema_extra=FREE
    )
    cache_dir: Folder | None = Field(
        None,
        description="where encoded rows are kept; default: $HFTUNE_CACHE, else hftune in $XDG_CACHE_HOME or ~/.cache",
        json_schema_extra=FREE | PATH,
    )

    @model_validator(mode="after")
    def _one_validation(self) -> "Data":
        if self.validation and self.validation_fraction:
            raise ValueError("give validation or validation_fraction, not both")
        return self

    @model_validator(mode="after")
    def _weights_are_of_training(self) -> "Data":
        splits = {"validation": self.validation, "test": self.test}
        weighed = [name for name, sources in splits.items() if any(source.weight != 1 for source in sources or [])]
        if weighed:
            raise NoEffect(dict.fromkeys(weighed, "has a weight, which has an effect only with rows of data.train"))
        return self


class Peft(Block):
    """Parameter-efficient fine-tuning with peft."""

    method: Literal["lora", "rslora", "dora", "ia3", "adalora", "prefix", "prompt", "p-tuning"] = Field(
        description="the PEFT method", json_schema_extra=FIXED
    )
    r: Positive = Field(8, description="rank, for the LoRA family", json_schema_extra=FIXED | only(method=[*LOW_RANK]))
    lora_alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="scale, for the LoRA family", json_schema_extra=only(method=[*LOW_RANK])
    )
    lora_dropout: Share = Field(
        0.0,
        description="dropout on the adapter's input, for the LoRA family",
        json_schema_extra=only(method=[*LOW_RANK]),
    )
    target_modules: list[str] | str | None = Field(
        None,
        description="for the LoRA family and ia3: a list of module names, all-linear, or a regular expression for whole names; "
        "default: by architecture",
        json_schema_extra=FIXED | only(method=[*MERGEABLE]),
    )
    modules_to_save: list[str] = Field(
        [], description="further modules to train and save whole", json_schema_extra=FIXED
    )
    num_virtual_tokens: Positive = Field(
        20,
        description="length of the prompt, for prefix, prompt and p-tuning",
        json_schema_extra=FIXED | only(method=[*PROMPTS]),
    )


class Train(Block):
    """The mathematics of training. A batch is global: the rows of one optimizer step over all processes."""

    batch_size: Positive = Field(
        32,
        description="rows of one optimizer step, over all processes",
        json_schema_extra=only(batch_tokens=[None]) | replaces("batch_tokens"),
    )
    batch_tokens: Positive | None = Field(None, description="instead of batch_size: tokens of one optimizer step")
    micro_batch_tokens: Positive | None = Field(
        None,
        description="padded tokens of a micro-batch; affects speed, memory and where dropout falls, nothing else; default: chosen to fit the memory",
        json_schema_extra=FREE,
    )
    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        3.0, description="passes over the training rows", json_schema_extra=EXTEND | replaces("max_steps")
    )
    max_steps: Positive | None = Field(
        None, description="optimizer steps; takes precedence over num_train_epochs", json_schema_extra=EXTEND
    )
    max_tokens: Positive | None = Field(
        None, description="stop after this many training tokens", json_schema_extra=EXTEND
    )
    max_time: Duration | None = Field(
        None, description="stop, after saving, when this much time has passed", json_schema_extra=FREE
    )
    timeout: Duration = Field(
        "60m",
        description="watchdog: end the process when no step, batch of an evaluation or save finishes within this time",
        json_schema_extra=FREE,
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="peak learning rate")
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    ] = Field("linear", description="schedule of the learning rate")
    lr_scheduler_kwargs: Settings = Field({}, description="further arguments of the schedule")
    warmup_ratio: Share = Field(
        0.0,
        description="fraction of the steps for linear warmup, rounded up",
        json_schema_extra=only(warmup_steps=[None], lr_scheduler_type=WARMING) | replaces("warmup_steps"),
    )
    warmup_steps: Count | None = Field(
        None,
        description="number of warmup steps, instead of warmup_ratio",
        json_schema_extra=only(lr_scheduler_type=WARMING),
    )
    optim: Literal["adamw", "adafactor", "sgd"] = Field("adamw", description="optimizer", json_schema_extra=FIXED)
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01,
        description="weight decay, decoupled from the gradient, but with sgd added to it; biases and norms are exempt",
    )
    adam_beta1: Decay = Field(
        0.9,
        description="Adam's beta1, decay of the first moment; of sgd the momentum",
        json_schema_extra=only(optim=["adamw", "sgd"]),
    )
    adam_beta2: Decay = Field(
        0.999, description="Adam's beta2, decay of the second moment", json_schema_extra=only(optim=["adamw"])
    )
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(
        1e-8, description="Adam's epsilon", json_schema_extra=only(optim=["adamw"])
    )
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="maximum gradient norm; 0: no clipping")
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="label smoothing")
    freeze: Literal["none", "body"] = Field(
        "none", description="body: train the new head only (a linear probe)", json_schema_extra=FIXED
    )
    layerwise_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor on the learning rate from each layer to the one below it; the topmost that is trained has the whole",
        json_schema_extra=FIXED,
    )
    gradual_unfreezing: Count = Field(
        0,
        description="unfreeze one more layer, from the top, every this many steps; 0: train all layers from the start",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic; auto: bf16 on a GPU that has it, else fp32"
    )
    matmul: Literal["auto", "highest"] = Field(
        "auto",
        description="auto: a short probe takes oneDNN's matrix products where they are true fp32 and much faster; highest: always the default library",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory", json_schema_extra=FREE
    )
    compile: bool = Field(False, description="torch.compile the model")
    use_liger_kernel: bool = Field(
        False, description="Liger's kernels for decoders on a GPU (pip install liger-kernel)"
    )
    group_by_length: bool = Field(
        False, description="group rows of similar length into steps: faster, but changes which rows share a step"
    )
    seed: Count = Field(42, description="random seed of order, masks, dropout and new weights")
    logging_steps: Positive = Field(10, description="number of steps between log entries", json_schema_extra=FREE)
    eval_steps: Positive | None = Field(None, description="steps between evaluations; default: once an epoch")
    save_steps: Positive | None = Field(
        None, description="steps between checkpoints; default: as eval_steps", json_schema_extra=FREE
    )
    save_interval: Duration | None = Field(
        "30m",
        description="save also when this much time has passed since the last checkpoint; null: never",
        json_schema_extra=FREE,
    )
    save_total_limit: Positive = Field(2, description="checkpoints to keep, besides the best", json_schema_extra=FREE)
    load_best_model_at_end: bool = Field(False, description="end with the best checkpoint instead of the last")
    metric_for_best_model: str = Field("loss", description="metric by which the best checkpoint is chosen")
    early_stopping_patience: Positive | None = Field(
        None, description="stop after this many evaluations without improvement"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="what to do when a loss or gradient is not finite"
    )


class Eval(Block):
    """How the model is measured."""

    metrics: list[str] | None = Field(
        None,
        description="metrics, with options as in `bleu:lang=zh`; default: those of the task; []: losses alone, so that nothing is "
        "answered or generated",
    )
    batch_tokens: Positive = Field(
        4096,
        description="padded tokens of an evaluation batch; affects speed and memory, not the results",
        json_schema_extra=FREE,
    )
    limit: Positive | None = Field(None, description="evaluate only this many rows from the start")
    stride: Positive | None = Field(
        None,
        description="causal models on text: evaluate in windows of task.max_length that move on by this many tokens, so that "
        "each token has at least max_length - stride tokens of context; default: pieces that do not overlap",
    )
    pseudo_perplexity: bool = Field(
        False,
        description="masked models: in `hftune eval` and at the end of a run also mask each token alone, in turn; as many "
        "rows as there are tokens",
        json_schema_extra=FREE,
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95,
        description="confidence level of the bootstrap intervals",
        json_schema_extra=FREE | only(resamples=above(0)),
    )
    resamples: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        1000, description="bootstrap resamples; 0: no intervals", json_schema_extra=FREE
    )

    def part(self, split: str) -> str:
        """What is measured of a split, as datasets writes it: `test`, or `test[:100]`."""
        return split if self.limit is None else f"{split}[:{self.limit}]"

    @property
    def losses_only(self) -> bool:
        """Whether the model is to answer nothing."""
        return self.metrics == []


class Output(Block):
    """Where the run goes."""

    dir: Folder = Field(description="run folder", json_schema_extra=FREE | PATH)


class Recipe(Block):
    """A whole recipe. `recipe.task.name` names the task, `recipe.task.options` holds its options."""

    task: TaskBlock = Field(description="name of the task and its options")
    model: Model
    tokenizer: Tokenizer = Tokenizer()
    data: Data
    peft: Peft | None = None
    train: Train = Train()
    eval: Eval = Eval()
    output: Output
