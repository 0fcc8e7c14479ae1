from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.corpora.decontamination import RUN, Decontamination, count_words

LONG = " ".join(f"w{i}" for i in range(20))


# As written before scripts without spaces were supported.
DIGEST = "020dec2ad70a26fd0083c1bfce7aa7ba2ac47cf4d306e024e56667fc22a1dffa"


def test_layout_case_and_punctuation_are_ignored() -> None:
    held_out = Decontamination(["``Who knows?'' The point is, do we go with it?"])
    assert held_out.found_in('He said: "who  knows?" the\npoint is - do WE go with it - or not')
    assert not held_out.found_in("who knows the point do we go with it")


def test_thirteen_words_of_a_long_text_suffice() -> None:
    held_out = Decontamination([LONG])
    words = LONG.split()
    assert held_out.found_in("x " + " ".join(words[4 : 4 + RUN]) + " y")
    assert not held_out.found_in("x " + " ".join(words[4 : 3 + RUN]) + " y")


def test_short_text_must_occur_completely_in_whole_words() -> None:
    held_out = Decontamination(["on the mat", "cat"])
    assert held_out.found_in("sat on the mat")
    assert held_out.found_in("the cat")
    assert not held_out.found_in("sat on the matter; concatenate")


def test_no_held_out_texts() -> None:
    assert not Decontamination([]).found_in("anything")
    assert not Decontamination(["", "?!"]).found_in("anything?!")
    assert not Decontamination(["a b"]).found_in("")


sentence = st.lists(st.sampled_from("abc"), min_size=1, max_size=25).map(" ".join)


@given(texts=st.lists(sentence, min_size=1, max_size=4), document=sentence)
def test_agrees_with_a_direct_search(texts: list[str], document: str) -> None:
    def occurs(text: str) -> bool:
        words = text.split()
        runs = [words[i : i + RUN] for i in range(max(1, len(words) - RUN + 1))]
        return any(re.search(rf"\b{' '.join(run)}\b", document) for run in runs)

    assert Decontamination(texts).found_in(document) == any(map(occurs, texts))


NORMAL = {
    "accents": "le garçon a mangé une crème brûlée très sucrée à l'été",
    "width": "ＡＢＣ １２３ ｄｅｆ",
    "marks of Devanagari": "यह किताब बहुत अच्छी है",
    "Hangul": "나는 오늘 학교에 갔다",
}


@pytest.mark.parametrize("text", NORMAL.values(), ids=NORMAL)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_every_normal_form_is_found(text: str, form: str) -> None:
    found = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    assert Decontamination([text]).found_in(f"x. {found} y")
    assert Decontamination([found]).found_in(f"x. {text} y")


@pytest.mark.parametrize("sign", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\U000e0065"])
def test_format_characters_are_ignored(sign: str) -> None:
    """Soft hyphens, joiners and zero-width spaces are not visible."""
    for text in (LONG, "The concatenated sentences are short.", "le garçon a mangé une crème brûlée", CHINESE):
        hidden = sign.join(text)
        assert Decontamination([text]).found_in(f"x. {hidden} y")
        assert Decontamination([hidden]).found_in(f"x. {text} y")
        assert Decontamination([hidden]).digest == Decontamination([text]).digest


def test_marks_belong_to_words() -> None:
    held_out = Decontamination(["यह किताब"])
    assert not held_out.found_in("यह कताब")
    assert not held_out.found_in("यह किताबें")


# Chinese, Japanese and Thai: over 13 words, that is 26 characters (marks do not count).
CHINESE = "春天来了公园里的花都开了孩子们在草地上放风筝老人坐在长椅上晒太阳聊天"
JAPANESE = "むかしむかしあるところにおじいさんとおばあさんが住んでいましたおじいさんは山へ"
THAI = "เมื่อวานนี้ฉันไปตลาดกับแม่และซื้อผลไม้หลายอย่างกลับมาที่บ้านของเรา"


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI], ids=["Chinese", "Japanese", "Thai"])
def test_scripts_without_spaces(text: str) -> None:
    held_out = Decontamination([text])
    assert held_out.found_in("前" + text + "後")
    units = re.findall(r"\w[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*", text)
    assert held_out.found_in("。".join(["始", *units[3 : 3 + 2 * RUN], "終"]))
    assert not held_out.found_in("".join(units[3 : 2 + 2 * RUN]))
    assert not held_out.found_in("".join(reversed(units)))


def test_short_text_without_spaces_must_occur_completely() -> None:
    held_out = Decontamination(["猫坐在垫子上。", CHINESE[:20]])
    assert held_out.found_in("我们看见猫坐在垫子上,然后走了")
    assert held_out.found_in(f"他说{CHINESE[:20]}吗")
    assert not held_out.found_in(f"我们看见猫坐在桌子上{CHINESE[:19]}")


def test_words_are_counted_in_every_script() -> None:
    assert count_words("I don't like - it") == 4
    assert count_words(CHINESE) == len(CHINESE) // 2
    assert count_words("用 Python 写程序") == 3


def test_digest_names_the_texts() -> None:
    assert Decontamination([LONG, "a b"]).digest == Decontamination(["a b", LONG]).digest
    assert Decontamination([LONG]).digest != Decontamination(["a b"]).digest
    # The digest of English texts is recorded in published shards.
    assert Decontamination(["The cat", LONG]).digest == DIGEST


def test_punctuation_is_not_a_word() -> None:
    """Otherwise a table cell "- - - - the" would count as five words and drop every document with the last."""
    assert count_words("- - - - the") == 1
    assert count_words("| * | :-) | 5 |") == 1
