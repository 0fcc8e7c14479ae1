"""Span Corruption + Sentinel (Lester et al. 2021, §3.2): an unchanged T5 that uses its sentinels downstream.

    variant targets:  y → extra_id_0 y          (the paper)
    variant both:     x → x extra_id_0,  y → extra_id_0 y     (the T5 library's *_sentinel tasks)

No training: the weights stay the same. Everything downstream (training, scoring, decoding, serving) reads the variant
from the artifact. A vocabulary without sentinels gains 100, and the T5 embedding rows for them.

In:  "model" (a span-corruption T5)
Out: "model" (the same weights, another `sentinel` in its metadata)
Run: accelerate launch stages/sentinel.py --model google/t5-v1_1-base --output-dir runs/sentinel
 or: accelerate launch stages/sentinel.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from dataclasses import replace

from t5_pipeline.config.adaptation import SentinelConfig
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.load import grow_vocabulary
from t5_pipeline.modeling.model_metadata import LineageStage


def sentinel(stage: Stage[SentinelConfig]) -> None:
    c, model = stage.config, stage.load_model()

    gained = 0
    if not model.vocabulary.sentinels:
        vocabulary = model.vocabulary.with_sentinels()
        gained = vocabulary.sentinels
        first_new = vocabulary.size - gained
        t5 = grow_vocabulary(model.t5, vocabulary.rows, first_new=first_new, start=c.new_rows, seed=c.seed)
        model = replace(model, t5=t5, vocabulary=vocabulary)
        log.info(
            "%s: added %d sentinels to the vocabulary, with embedding rows by `%s`", stage.name, gained, c.new_rows
        )

    made = LineageStage(stage="sentinel", variant=c.variant, gained=gained, of=model.digest)
    metadata = model.metadata.with_sentinel(c.variant).with_stage(made)
    stage.cells[0].facts.update(parameters=model.t5.shape.parameters, sentinels_gained=gained)
    stage.publish("model", lambda place: model.save(place, metadata))


if __name__ == "__main__":
    main(sentinel, SentinelConfig)
