"""LM adaptation (Lester et al. 2021, §2.2): continue a T5 on natural text as a prefix LM.

A segment t of ℓ tokens, prefix length k ~ U{1..ℓ−1}:  inputs = t[:k] + EOS,  targets = t[k:] + EOS

`probe` tunes small prompts on the current weights as it trains: Figure 3(d) of the paper while it happens.
Other objectives for adapting a T5 to text: `objective: lm | full_lm | packed_pairs`.

In:  "model" (a T5), "tokens" (shards from prepare)
Out: "model" (the T5 that prompt_tune freezes), one for each kept step
Run: accelerate launch stages/lm_adapt.py --model google/t5-v1_1-base --tokens runs/c4/prepare --output-dir runs/adapted
 or: accelerate launch stages/lm_adapt.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.data_prep.objectives.documents import Objective
from t5_pipeline.data_prep.objectives.language_model import LM, FullLM
from t5_pipeline.data_prep.objectives.packed_pairs import PackedPairs
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.packed_rows import PackedRows
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.evaluation.probe import probing_of
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.model_metadata import LineageStage
from t5_pipeline.training.language_model import train_language_model
from t5_pipeline.training.result import TrainingResult


def lm_adapt(stage: Stage[LMAdaptConfig]) -> None:
    c, tokens = stage.config, stage.input("tokens").path
    text, held_out = TokenShards.open(tokens), TokenShards.open(tokens, "validation")
    model = stage.load_model(text.vocabulary)

    special = model.vocabulary.special
    batches = batches_of(c, objective_of(c, text, special.eos), special.pad)
    unseen = objective_of(c, held_out, special.eos)
    validation = batches_of(c, unseen, special.pad) if unseen.count(0) else None

    def publish(step: int, result: TrainingResult) -> None:
        best = result.best().step
        made = LineageStage(stage="lm_adapt", step=best, objective=c.objective, **text.origin, of=model.digest)
        metadata = model.metadata.with_stage(made)
        stage.publish("model", lambda place: model.save(place, metadata, result.weights()), step=step)

    probing = probing_of(stage, model)
    train_language_model(stage, model.t5, batches, validation, publish, text.vocabulary.piece_bytes(), probing)


def objective_of(c: LMAdaptConfig, tokens: TokenShards, eos: int) -> Objective:
    """The objective that turns text into examples."""
    match c.objective:
        case "prefix_lm":
            return PrefixLM(tokens, c.seed, c.segment_length, c.prefix_density, eos)
        case "lm":
            return LM(tokens, c.seed, c.segment_length, eos)
        case "full_lm":
            return FullLM(tokens, c.seed, c.segment_length, eos)
        case "packed_pairs":
            return PackedPairs(tokens, c.seed, c.segment_length, eos)


def batches_of(c: LMAdaptConfig, objective: Objective, pad: int) -> LMBatches:
    """The batch of each step, counted in examples or in the rows into which T5 packs them."""
    widths = (c.segment_length, c.segment_length)
    rows = None
    if c.batch_unit == "rows" and isinstance(objective, PrefixLM):
        rows = PackedRows(objective, c.seed, widths)
    return LMBatches(objective, c.batch_size, c.seed, widths if c.packing else None, rows, pad)


if __name__ == "__main__":
    main(lm_adapt, LMAdaptConfig)
