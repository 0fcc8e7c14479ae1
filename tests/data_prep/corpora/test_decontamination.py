from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.corpora.decontamination import RUN, Decontamination

LONG = " ".join(f"w{i}" for i in range(20))


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
