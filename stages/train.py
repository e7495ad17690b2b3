"""Train the embedded models on Jane Austen's novels: `embedded`, and `embedded-small` with about a quarter of its weights.

A frozen DVC stage: `dvc repro` does not run it, because the models are in git. About 100 minutes on 2 cores; `dvc unfreeze train`
and `dvc repro --force train` make them anew. A run that was stopped goes on at the epoch it was in.
"""

from pathlib import Path

from quant.pipeline import MODELS, run

LINE = "{}\n"  # the form that a sentence takes in the text; as evaluate.line in params.yaml
VOCABULARY, CONTEXT, SEED = 4096, 256, 0
SIZES = {  # width (256, so that llama.cpp's K-quants apply), layers, heads, dropout, epochs
    "embedded": (256, 4, 4, 0.25, 16),
    "embedded-small": (128, 3, 4, 0.1, 16),
}
STATE = Path("data/training")


def main() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from quant.text.novels import TRAIN, chapters
    from quant.training.tokenizer import make_tokenizer
    from quant.training.train import Schedule, Training, token_stream, windows_of

    held_out = {novel: slice(9, None, 20) for novel in TRAIN}  # every twentieth chapter validates
    texts = {novel: chapters(novel) for novel in TRAIN}
    validating = [lines for novel in TRAIN for lines in texts[novel][held_out[novel]]]
    training = [[line for lines in texts[novel] if lines not in validating for line in lines] for novel in TRAIN]
    tokenizer = make_tokenizer((LINE.replace("{}", line) for lines in training for line in lines), VOCABULARY, CONTEXT)
    stream = token_stream(tokenizer, training, LINE)
    validation = windows_of(token_stream(tokenizer, validating, LINE), CONTEXT)
    for name, (width, layers, heads, dropout, epochs) in SIZES.items():
        torch.manual_seed(SEED)
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_ctx=CONTEXT, n_embd=width, n_layer=layers, n_head=heads,
            activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, computed in one step
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        ))
        Training(model, Schedule(epochs), STATE / name, SEED).run(stream, validation, CONTEXT)
        model.half().save_pretrained(MODELS / name)
        tokenizer.save_pretrained(MODELS / name)


if __name__ == "__main__":
    run(main)
