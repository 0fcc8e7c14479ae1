"""Span corruption (Raffel et al. 2020, §3.1.4): what T5 was pretrained on, from nothing or from a checkpoint.

A window t of T tokens, noise spans s_1 … s_n drawn over 15% of it:
    inputs = t with each s_j replaced by extra_id_j,  targets = extra_id_0 s_1 extra_id_1 s_2 …     (each + EOS)

In:  "tokens" (shards from prepare), and either "model" (a T5) or `init` (sizes)
Out: "model" (a span-corruption T5), one for each kept step
Run: accelerate launch stages/span_corrupt.py --init.d-model 128 --tokens runs/text --steps 1000 --output-dir runs/t5
 or: accelerate launch stages/span_corrupt.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from functools import partial

from t5_pipeline.config.adaptation import SpanCorruptConfig
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import ModelMetadata, read_metadata, write_model
from t5_pipeline.training.trainer import Trained, train_language_model


def span_corrupt(stage: Stage[SpanCorruptConfig]) -> None:
    c = stage.config
    tokens = stage.input("tokens").path
    text, held_out = TokenShards.open(tokens), TokenShards.open(tokens, "validation")
    vocabulary = text.vocabulary
    if c.init is not None:
        model = init_t5(T5Config(vocab_size=vocabulary.rows, **c.init.model_dump()), c.seed)
        metadata, origin = ModelMetadata(), None
    else:
        source = stage.input("model")
        model = load_t5(source.path)
        vocabulary.check_fits(model.shape.vocab_size, source.path)
        metadata, origin = read_metadata(source.path), source.digest
    model.set_dropout(c.dropout)
    model.set_execution(c.reference_ops, c.recompute)

    def batches_of(split: TokenShards) -> LMBatches:
        objective = SpanCorruption(
            split,
            c.seed,
            c.input_length,
            c.noise_density,
            c.mean_span_length,
            vocabulary_size=vocabulary.size,
            sentinels=vocabulary.sentinels,
        )
        rows = (c.input_length, objective.target_length) if c.packing else None
        return LMBatches(objective, c.batch_size, c.seed, rows)

    def publish(step: int, trained: Trained) -> None:
        made = metadata.with_stage(
            stage="span_corrupt",
            step=step,
            objective="span corruption",
            **text.origin,
            of=origin,
        )
        write = partial(write_model, model=model, vocabulary=vocabulary, metadata=made)
        stage.publish("model", lambda directory: write(directory, tensors=trained.weights()), step=step)

    train_language_model(stage, model, batches_of(text), batches_of(held_out) if held_out.documents else None, publish)


if __name__ == "__main__":
    main(span_corrupt, SpanCorruptConfig)
