"""Settings of the reparametrizations of soft prompts (pipeline/modeling/reparametrization.py)."""

from __future__ import annotations

from typing import Literal

from t5_pipeline.core.schema import Config, setting


class RankOneConfig(Config):
    """Group: prompts whose rows are scaled by a matrix of rank one."""

    factor_learning_rate: float = setting(
        0.4,
        "learning rate of the rank-one factors u and v; they share the prompts' schedule",
        neutral=True,
        only="reparametrization: rank_one",
        gt=0,
    )


class ReparametrizationConfig(RankOneConfig):
    """Group: numbers that are trained in place of a prompt's rows, which are published as always."""

    reparametrization: Literal["none", "residual", "low_rank", "superpos", "rank_one"] = setting(
        "none", "numbers to train: the rows (none), or others that give the rows (docs/prompts.md)", neutral=True
    )
    residual_width: int = setting(
        400, "hidden width of the MLP", unit="numbers", neutral=True, only="reparametrization: residual", gt=0
    )
    rank: int = setting(10, "rank of the product A·B", neutral=True, only="reparametrization: low_rank", gt=0)
    superpos_tokens: int = setting(
        128,
        "vocabulary rows in a weighted sum",
        unit="tokens",
        neutral=True,
        only="reparametrization: superpos",
        gt=0,
    )

    def trained_numbers(self, length: int, width: int) -> int:
        """Number of trained parameters of one prompt.

        >>> each = ("none", "residual", "low_rank", "superpos", "rank_one")
        >>> [ReparametrizationConfig(reparametrization=name).trained_numbers(100, 1024) for name in each]
        [102400, 925072, 11240, 12800, 103524]
        """
        match self.reparametrization:
            case "none":
                return length * width
            case "residual":
                return length * width + self.residual_width * (2 * width + 1) + 3 * width
            case "low_rank":
                return self.rank * (length + width)
            case "superpos":
                return length * self.superpos_tokens
            case "rank_one":
                return length * width + length + width

    def computed_numbers(self, length: int, width: int) -> int:
        """Numbers beside the trained ones in a step: frozen rows, and the rows and what they are computed from."""
        match self.reparametrization:
            case "none":
                return 0
            case "residual":
                return 2 * (2 * length * width + length * self.residual_width)
            case "low_rank":
                return 2 * length * width
            case "superpos":
                return 2 * length * width + self.superpos_tokens * width
            case "rank_one":
                return 4 * length * width
