"""Train the project's model embedded at few bits a weight, and measure it beside rounding to nearest at the same bits.

This takes about half an hour on 2 cores. An interrupted run resumes at the epoch it was in, and a finished one is only measured
again; to train anew, delete data/training/quantized. Only the numbers are kept in git: reports/studies/trained.json.
"""

import sys
from dataclasses import asdict

from quant.files import significant, write_json
from quant.pipeline import MODELS, STUDIES, TRAINING, run


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quant.quality.protocol import ScoringProtocol
    from quant.text.read import read_corpus
    from quant.text.source import TextSource
    from quant.training.model import CONTEXT
    from quant.training.qat import ROUNDED, SCHEDULE, TRAINED, Distillation, save_student, student_of
    from quant.training.study import measure_trained
    from quant.training.texts import LINE, novel_texts
    from quant.training.train import Training, token_stream, windows_of

    base, state, texts = MODELS / "embedded", TRAINING / "quantized", novel_texts()
    tokenizer, loss = AutoTokenizer.from_pretrained(base), Distillation(AutoModelForCausalLM.from_pretrained(base).float())
    stream, held_out = (token_stream(tokenizer, chosen, LINE) for chosen in (texts.training, texts.validation))
    steps, about = SCHEDULE.steps_per_epoch(stream, CONTEXT), {}
    for name, scheme in TRAINED.items():
        print(f"{name}: {steps * SCHEDULE.epochs} steps", file=sys.stderr)
        student = student_of(base, scheme)
        training = Training(student, SCHEDULE, state / name, loss=loss)
        training.run(stream, windows_of(held_out, CONTEXT), CONTEXT)
        save_student(student, base, state / name / "model")
        done = steps * training.epoch
        about[name] = {"steps": done, "tokens": done * SCHEDULE.batch_size * CONTEXT, "epochs": training.epoch,
                       "best_epoch": training.best_epoch, "validation_kld_mnats": significant(1000 * training.best)}
    corpus, protocol = read_corpus(TextSource("austen")), ScoringProtocol("joined/1", CONTEXT, CONTEXT, LINE)
    trained = {name: state / name / "model" for name in TRAINED}
    found = measure_trained(base, TRAINED | ROUNDED, trained, corpus, protocol, state / "measured")
    write_json(STUDIES / "trained.json", found | {
        "model": str(base), "training": {"tokens": len(stream), "schedule": asdict(SCHEDULE), "schemes": about}})
    print("train-quantized:", "; ".join(f"{row['scheme']} {row['way']} {row['kld_mnats']:.1f} mnat" for row in found["rows"]))


run(main)
