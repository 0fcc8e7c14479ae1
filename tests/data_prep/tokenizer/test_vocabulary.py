from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sentencepiece
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.local_hub import without_network

# Text that can be stored as UTF-8.
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_ids_equal_sentencepiece(vocabulary: Vocabulary, texts: list[str]) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    assert [vocabulary.encode(text) for text in texts[:200]] == [reference.encode(text) for text in texts[:200]]
    assert vocabulary.encode_batch(texts) == [reference.encode(text) for text in texts]


def test_layout(vocabulary: Vocabulary) -> None:
    assert (vocabulary.pad, vocabulary.eos, vocabulary.unk) == (0, 1, 2)
    assert vocabulary.size == 1100
    assert vocabulary.rows == 1152
    assert vocabulary.sentinel(0) == 1099
    assert vocabulary.sentinel(99) == 1000
    with pytest.raises(InputError, match="has 100 sentinels, so no <extra_id_100>"):
        vocabulary.sentinel(100)


def test_t5_layout(shared: Path) -> None:
    t5 = Vocabulary.load(shared / "data" / "t5" / "spiece.model")
    assert (t5.size, t5.rows, t5.sentinel(0), t5.sentinel(99)) == (32_100, 32_128, 32_099, 32_000)
    assert t5.encode("Hello, world!") == [8774, 6, 296, 55]  # as in T5's own tests


@pytest.mark.parametrize("literal", ["</s>", "<pad>", "<unk>", "<extra_id_0>", "a</s>b", "<extra_id_99> <extra_id_7>"])
def test_control_strings_are_text(vocabulary: Vocabulary, literal: str) -> None:
    ids = vocabulary.encode(f"x {literal} y")
    assert vocabulary.eos not in ids
    assert vocabulary.pad not in ids
    assert max(ids) < vocabulary.size - vocabulary.sentinels


@given(text=unicode_text)
def test_no_text_encodes_to_a_control_id(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert not {vocabulary.pad, vocabulary.eos} & set(ids)
    assert max(ids, default=2) < vocabulary.size - vocabulary.sentinels


def test_bytes_of_ids_add_up_to_the_text(vocabulary: Vocabulary) -> None:
    text = "The quick brown fox"
    bytes_V = vocabulary.piece_bytes()
    assert bytes_V[vocabulary.encode(text)].sum() == len(text) + 1  # SentencePiece puts a space in front
    assert bytes_V[[vocabulary.pad, vocabulary.eos, vocabulary.unk, vocabulary.sentinel(0)]].tolist() == [0, 0, 0, 0]


def test_decode(vocabulary: Vocabulary) -> None:
    words = "the name of the module"
    ids = vocabulary.encode(words)
    assert vocabulary.decode(ids) == words
    assert vocabulary.decode([0, *ids, 1, 0, 0]) == words
    assert (
        vocabulary.decode([vocabulary.sentinel(0), *ids, vocabulary.sentinel(12)])
        == f"<extra_id_0> {words} <extra_id_12>"
    )
    assert vocabulary.decode([]) == ""
    # A model may emit its padding rows.
    assert vocabulary.decode([vocabulary.rows - 1]) == vocabulary.decode([vocabulary.unk])


def test_leading_sentinel_of_an_answer_is_stripped(vocabulary: Vocabulary) -> None:
    first, ids = vocabulary.sentinel(0), vocabulary.encode("the name")
    for variant in ("targets", "both"):
        assert vocabulary.strip_sentinel([first, *ids], variant) == ids
        assert vocabulary.strip_sentinel([first, first, *ids], variant) == [first, *ids]
        assert vocabulary.strip_sentinel([*ids, first], variant) == [*ids, first]
        assert vocabulary.strip_sentinel(ids, variant) == ids
        assert vocabulary.strip_sentinel([], variant) == []
    assert vocabulary.strip_sentinel([first, *ids], "none") == [first, *ids]
    bare = vocabulary.with_sentinels(0)
    assert bare.strip_sentinel(ids) == ids
    assert bare.strip_sentinel([bare.size - 1, 5]) == [bare.size - 1, 5]


def test_model_with_too_few_rows(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.check_fits(vocabulary.rows, tmp_path)
    with pytest.raises(InputError, match=r"model: has 1,099 embedding rows, but the vocabulary has 1,100 ids"):
        vocabulary.check_fits(vocabulary.size - 1, tmp_path / "model")


def test_model_with_another_vocabulary(vocabulary: Vocabulary, texts: list[str], tmp_path: Path) -> None:
    other = Vocabulary.train(texts[::7], 500)
    other.save(tmp_path)
    other.check_fits(1152, tmp_path)
    with pytest.raises(InputError, match=r"tokenized with another vocabulary than .*spiece\.model; prepare it again"):
        vocabulary.check_fits(1152, tmp_path)


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], None]]:
    """Adds files to a hub served on localhost, on which every model exists."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            headers = {"X-Error-Code": "EntryNotFound"} if data is None else {"ETag": '"1"'}
            self.send_response(404 if data is None else 200)
            for key, value in {"X-Repo-Commit": "c0", "Content-Length": str(len(data or b"")), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Suppress logging."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield lambda name, data: files.update({"/" + name.replace(":", "/resolve/main/"): data})
    server.shutdown()
    server.server_close()


def test_hub_model_with_another_vocabulary(
    vocabulary: Vocabulary, texts: list[str], on_hub: Callable[[str, bytes], None]
) -> None:
    on_hub("lab/t5:spiece.model", vocabulary.model)
    assert Vocabulary.load("lab/t5").digest == vocabulary.digest
    vocabulary.check_fits(1152, Path("lab/t5"))
    with pytest.raises(InputError, match=r"lab/t5: .* another vocabulary than lab/t5/spiece\.model; prepare it again"):
        Vocabulary.train(texts[::7], 500).check_fits(1152, "lab/t5")
    vocabulary.check_fits(1152, "lab/without")  # without a vocabulary, only rows are compared
    with pytest.raises(InputError, match=r"vocabulary lab/without: has no spiece\.model on the hub"):
        Vocabulary.load("lab/without")


def test_a_hub_vocabulary_without_a_network_is_the_cached_one_at_once(
    vocabulary: Vocabulary, on_hub: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub("lab/t5:spiece.model", vocabulary.model)
    Vocabulary.load("lab/t5")
    without_network(monkeypatch)
    assert Vocabulary.load("lab/t5").digest == vocabulary.digest
    with pytest.raises(InputError, match=r"lab/t6/spiece\.model from the hub \(.*not known\); check the spelling"):
        Vocabulary.load("lab/t6")


def test_training_is_reproducible(texts: list[str], vocabulary: Vocabulary) -> None:
    again = Vocabulary.train(texts, 1000)
    assert again.model == vocabulary.model
    assert again.digest == vocabulary.digest
    assert Vocabulary.train(texts[:-50], 1000).digest != vocabulary.digest


def test_long_lines_are_split_for_training() -> None:
    """SentencePiece's trainer silently skips lines over 4,192 bytes, so they are split between words."""
    words = " ".join(f"word{i}" for i in range(4000))
    assert Vocabulary.train([words], 60).unk not in Vocabulary.train([words], 60).encode("word1")


def test_text_without_spaces_is_trained_on() -> None:
    """A document without a space in 4,192 bytes would be skipped as one long word."""
    signs = [chr(0x4E00 + i) for i in range(200)]
    documents = ["".join(signs[(i * j) % 200] for i in range(2000)) for j in (1, 3, 7)]
    vocabulary = Vocabulary.train([*documents, "the cat sat on a mat " * 20], 219)
    assert all(vocabulary.unk not in vocabulary.encode(sign) for sign in signs)
    with pytest.raises(
        InputError, match=r"40 pieces are too few for the characters of the corpus; set it to 2\d\d or more"
    ):
        Vocabulary.train(documents, 40)


@pytest.mark.parametrize(
    ("size", "message"), [(100_000, r"set it to at most [\d,]+$"), (20, r"set it to [\d,]+ or more$")]
)
def test_vocabulary_size_out_of_range(texts: list[str], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vocabulary.train(texts[:300], size)


def test_no_text_to_train_on() -> None:
    with pytest.raises(InputError, match=r"^vocabulary_size: cannot train"):
        Vocabulary.train([" \n "], 100)


def test_save_and_load(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path).digest == vocabulary.digest
    assert Vocabulary.load(tmp_path / "spiece.model").digest == vocabulary.digest
    bare = vocabulary.with_sentinels(0)
    bare.save(tmp_path / "bare")
    loaded = Vocabulary.load(tmp_path / "bare")
    assert (loaded.sentinels, loaded.size, loaded.rows) == (0, 1000, 1024)
    assert loaded.digest == bare.digest != vocabulary.digest
    assert loaded.with_sentinels().digest == vocabulary.digest
    assert vocabulary.with_sentinels() is vocabulary


def test_sentinels_of_a_tokenizer_directory(vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(vocabulary.model)
    assert Vocabulary.load(tmp_path).sentinels == 100
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"extra_ids": 7}')
    assert Vocabulary.load(tmp_path).sentinels == 7
    for wrong in ('{"extra_ids": "x"}', "[]", "{"):
        config.write_text(wrong)
        with pytest.raises(InputError, match="tokenizer_config"):
            Vocabulary.load(tmp_path)


def test_invalid_vocabulary_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"contains no spiece\.model"):
        Vocabulary.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Vocabulary.load(tmp_path / "absent.model")
    with pytest.raises(InputError, match="does not exist; give a "):
        Vocabulary.load("../absent")  # not a name on the hub
    for content in (b"no model", b""):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(InputError, match=r"spiece\.model: is not a SentencePiece model"):
            Vocabulary.load(tmp_path)


def test_vocabulary_that_t5_cannot_use(texts: list[str]) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:500]), model_writer=model, vocab_size=300, minloglevel=2
    )
    with pytest.raises(InputError, match=r"has pad -1, eos 2 and unk 0 \(−1: none\); T5 needs all three"):
        Vocabulary(model.getvalue())


def test_config_is_json(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["extra_ids"] == 100
