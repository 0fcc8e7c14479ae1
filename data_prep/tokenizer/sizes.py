"""Sizes of T5's vocabulary, apart from SentencePiece: `plan` needs them and starts at once."""

SENTINELS = 100
_ROW_MULTIPLE = 128


def embedding_rows(size: int) -> int:
    """Rows of an embedding for `size` ids: the next multiple of 128.

    >>> embedding_rows(32_100)
    32128
    """
    return -(-size // _ROW_MULTIPLE) * _ROW_MULTIPLE
