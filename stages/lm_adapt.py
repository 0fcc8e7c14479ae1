"""LM adaptation (Lester et al. 2021, §2.2): continue a T5 on natural text as a prefix LM.

A segment t of ℓ tokens, prefix length k ~ U{1..ℓ−1}:  inputs = t[:k] + EOS,  targets = t[k:] + EOS

In:  "model" (a T5), "tokens" (shards from prepare)
Out: "model" (the T5 that prompt_tune freezes), one for each kept step
Run: accelerate launch stages/lm_adapt.py --model google/t5-v1_1-base --tokens runs/c4/prepare --output-dir runs/adapted
 or: accelerate launch stages/lm_adapt.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from data_prep.batches import LMBatches
from data_prep.objectives.prefix_lm import PrefixLM
from data_prep.shards import TokenShards
from pipeline.modeling.artifact import read_expectations, write_model
from pipeline.modeling.load import load_t5
from pipeline.settings import LMAdaptSettings
from pipeline.stage import Stage, main
from pipeline.training.run import train_language_model


def lm_adapt(stage: Stage[LMAdaptSettings]) -> None:
    c = stage.config
    source, tokens = stage.input("model"), stage.input("tokens").path
    model = load_t5(source.path)
    model.set_dropout(c.dropout)

    text, held_out = TokenShards.open(tokens), TokenShards.open(tokens, "validation")
    vocabulary = text.vocabulary
    vocabulary.check_fits(model.shape.vocab_size, source.path)
    batches = LMBatches(PrefixLM(text, c.seed, c.segment_length), c.batch_size, c.seed)
    validation = (
        LMBatches(PrefixLM(held_out, c.seed, c.segment_length), c.batch_size, c.seed) if held_out.documents else None
    )

    expects = read_expectations(source.path)

    def publish(step: int) -> None:
        made = expects.after(stage="lm_adapt", step=step, objective="prefix LM", tokens=text.digest, of=source.digest)
        stage.publish("model", lambda directory: write_model(directory, model, vocabulary, made), step=step)

    train_language_model(stage, model, batches, validation, publish)


if __name__ == "__main__":
    main(lm_adapt, LMAdaptSettings)
