"""Span corruption (Raffel et al. 2020, §3.1.4): T5's pretraining objective, from scratch or from a checkpoint.

A window t of T tokens, noise spans s_1 … s_n drawn over 15% of it:
    inputs = t with each s_j replaced by extra_id_j,  targets = extra_id_0 s_1 extra_id_1 s_2 …     (each + EOS)

`mixture: ul2` mixes six such denoisers and a prefix LM, each after its mode token (Tay et al. 2022); a recipe may list
other ones with their rates.

In:  "tokens" (shards from prepare), and either "model" (a T5) or `init` (sizes)
Out: "model" (a span-corruption T5), one for each kept step
Run: accelerate launch stages/span_corrupt.py --init.d-model 128 --tokens runs/text --steps 1000 --output-dir runs/t5
 or: accelerate launch stages/span_corrupt.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from t5_pipeline.config.adaptation import SpanCorruptConfig
from t5_pipeline.data_prep.objectives.denoisers import denoiser, mode_ids
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.mixed_batches import MixedBatches, Places, seed_of
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.model_metadata import LineageStage
from t5_pipeline.training.language_model import train_language_model
from t5_pipeline.training.microbatches import BatchSource
from t5_pipeline.training.result import TrainingResult


def span_corrupt(stage: Stage[SpanCorruptConfig]) -> None:
    c, tokens = stage.config, stage.input("tokens").path
    text, held_out = TokenShards.open(tokens), TokenShards.open(tokens, "validation")
    model = stage.load_model(text.vocabulary) if c.init is None else stage.init_model(c.init, text.vocabulary)
    vocabulary = model.vocabulary

    def batches_of(split: TokenShards) -> BatchSource:
        if c.mixture:
            return mixed_batches(c, split, vocabulary)
        objective = SpanCorruption(
            split,
            c.seed,
            c.input_length,
            c.noise_density,
            c.mean_span_length,
            sentinel_ids=vocabulary.sentinel_ids,
            eos=vocabulary.eos,
        )
        rows = (c.input_length, objective.target_length) if c.packing else None
        return LMBatches(objective, c.batch_size, c.seed, rows, pad=vocabulary.pad)

    def publish(step: int, result: TrainingResult) -> None:
        made = LineageStage(stage="span_corrupt", step=step, objective=name, **text.origin, of=model.digest)
        metadata = model.metadata.with_stage(made)
        stage.publish("model", lambda place: model.save(place, metadata, result.weights()), step=step)

    name = "mixture of denoisers" if c.mixture else "span corruption"
    validation = batches_of(held_out) if held_out.documents else None
    train_language_model(stage, model.t5, batches_of(text), validation, publish)


def mixed_batches(c: SpanCorruptConfig, split: TokenShards, vocabulary: Vocabulary) -> MixedBatches:
    """The batches of a mixture of denoisers."""
    parts, widths = [], [c.input_length, 0]
    for number, one in enumerate(c.mixture):
        seed = seed_of(c.seed, number)
        objective = denoiser(
            split,
            seed,
            c.input_length,
            **one.model_dump(include={"noise_density", "mean_span_length", "prefix_density"}),
            mode=mode_ids(one.mode, vocabulary),
            sentinel_ids=vocabulary.sentinel_ids,
            eos=vocabulary.eos,
        )
        parts.append(LMBatches(objective, c.batch_size, seed, pad=vocabulary.pad))
        widths[1] = max(widths[1], objective.target_length)
    places = Places([one.rate for one in c.mixture], c.seed)
    return MixedBatches(parts, places, c.batch_size, (widths[0], widths[1]) if c.packing else None, vocabulary.pad)


if __name__ == "__main__":
    main(span_corrupt, SpanCorruptConfig)
