"""By how much transformers' Trainer scales gradients when it accumulates: one step of four rows, whole and in four parts.

python -m benchmarks.accumulation
"""

import tempfile

import torch
import transformers
from transformers import AutoConfig, PrinterCallback, Trainer, TrainingArguments

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = {
    "bert": ("AutoModelForMaskedLM", {**SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    "gpt2": ("AutoModelForCausalLM", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "t5": ("AutoModelForSeq2SeqLM", {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0, "decoder_start_token_id": 0}),
    "bart": ("AutoModelForSeq2SeqLM", {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}),
    "xlnet": ("AutoModelForCausalLM", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0}),
}  # fmt: skip


def norm(name: str, parts: int) -> float:
    """The norm of the gradients that the Trainer steps with, four rows in so many micro-batches."""
    head, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(AutoConfig.for_model(name, **settings))
    ids = torch.randint(8, 64, (4, 16), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts, max_steps=1, logging_steps=1,
            max_grad_norm=1e9, learning_rate=0.0, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return float(next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry))


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}")
    for name in MODELS:
        print(f"{name}: gradient norm in four parts over that in one: {norm(name, 4) / norm(name, 1):.3f}")
