"""Span Corruption + Sentinel (Lester et al. 2021, §3.2): a T5 as it is, with its sentinels downstream.

    variant targets:  y → extra_id_0 y          (the paper)
    variant both:     x → x extra_id_0,  y → extra_id_0 y     (the T5 library's *_sentinel tasks)

No training: the weights are the same. What comes after (training, scoring, decoding, serving) obeys the variant by
itself, because the artifact says so. A vocabulary without sentinels gains 100, and the T5 rows for them.

In:  "model" (a span-corruption T5)
Out: "model" (the same weights, other expectations)
Run: accelerate launch stages/sentinel.py --model google/t5-v1_1-base --output-dir runs/sentinel
 or: accelerate launch stages/sentinel.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from t5_pipeline.config.adaptation import SentinelConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.load import grow_vocabulary, load_t5
from t5_pipeline.modeling.model_dir import read_metadata, write_model


def sentinel(stage: Stage[SentinelConfig]) -> None:
    c = stage.config
    source = stage.input("model")
    model = load_t5(source.path)
    vocabulary = Vocabulary.load(str(source.path))
    vocabulary.check_fits(model.shape.vocab_size, source.path)

    gained = 0
    if not vocabulary.sentinels:
        vocabulary = vocabulary.with_sentinels()
        gained = vocabulary.sentinels
        first_new = vocabulary.size - gained
        model = grow_vocabulary(model, vocabulary.rows, first_new=first_new, start=c.new_rows, seed=c.seed)
        log.info("%s: the vocabulary gained %d sentinels, their rows start as %s", stage.name, gained, c.new_rows)

    metadata = read_metadata(source.path).with_sentinel(c.variant)
    made = metadata.with_stage(stage="sentinel", variant=c.variant, gained=gained, of=source.digest)
    stage.cells[0].facts.update(parameters=model.shape.parameters, sentinels_gained=gained)
    stage.publish("model", lambda directory: write_model(directory, model, vocabulary, made))


if __name__ == "__main__":
    main(sentinel, SentinelConfig)
