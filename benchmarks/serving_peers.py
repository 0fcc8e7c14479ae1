"""The peers of benchmarks/serving.py: servers as one writes them around PEFT, transformers and CTranslate2."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t5_pipeline.data_prep.sampling.batches import padded
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

PROMPTS, ROWS, TOKENS = 16, 20, 8
BATCH, WINDOW = 32, 0.002


@dataclass(frozen=True)
class Request:
    prompt: int
    text: str


Ask = Callable[[Request], Awaitable[str]]


class Batcher:
    """A thread that answers waiting requests in batches: a server as one writes it around a library.

    Args:
        answer: answers requests of one batch.
        group: requests with different values cannot share a batch.
    """

    def __init__(self, answer: Callable[[list[Request]], list[str]], group: Callable[[Request], int]) -> None:
        self.answer, self.group = answer, group
        self.waiting: queue.SimpleQueue[tuple[Request, Future[str]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    async def ask(self, request: Request) -> str:
        future: Future[str] = Future()
        self.waiting.put((request, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        held: list[tuple[Request, Future[str]]] = []
        while True:
            if not held:
                if (first := self.waiting.get()) is None:
                    return
                held.append(first)
                time.sleep(WINDOW)
            while not self.waiting.empty():
                if (more := self.waiting.get()) is None:
                    return
                held.append(more)
            oldest = self.group(held[0][0])
            taken = [pair for pair in held if self.group(pair[0]) == oldest][:BATCH]
            chosen = {id(future) for _, future in taken}
            held = [pair for pair in held if id(pair[1]) not in chosen]
            for (_, future), text in zip(taken, self.answer([request for request, _ in taken]), strict=True):
                future.set_result(text)


@contextlib.contextmanager
def peft(model: Path, adapters: Path, vocabulary: Vocabulary) -> Iterator[Ask]:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration.from_pretrained(model)
    prompted = PeftModel.from_pretrained(t5, adapters / "p00", adapter_name="p00")
    for index in range(1, PROMPTS):
        prompted.load_adapter(adapters / f"p{index:02}", adapter_name=f"p{index:02}")
    prompted.eval()

    @torch.no_grad()
    def answer(requests: list[Request]) -> list[str]:
        prompted.set_adapter(f"p{requests[0].prompt % PROMPTS:02}")
        return _generated(prompted, vocabulary, _ids(vocabulary, requests))

    batcher = Batcher(answer, lambda request: request.prompt % PROMPTS)
    yield batcher.ask
    batcher.close()


@contextlib.contextmanager
def transformers(exported: Path, vocabulary: Vocabulary, first: Sequence[int]) -> Iterator[Ask]:
    from transformers import T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration.from_pretrained(exported).eval()

    @torch.no_grad()
    def answer(requests: list[Request]) -> list[str]:
        ids = _ids(vocabulary, requests)
        rows = [range(first[request.prompt % PROMPTS], first[request.prompt % PROMPTS] + ROWS) for request in requests]
        return _generated(t5, vocabulary, [[*row, *own] for row, own in zip(rows, ids, strict=True)])

    batcher = Batcher(answer, lambda _: 0)
    yield batcher.ask
    batcher.close()


@contextlib.contextmanager
def ctranslate2(exported: Path, vocabulary: Vocabulary, first: Sequence[int], kind: str) -> Iterator[Ask]:
    import ctranslate2

    translator = ctranslate2.Translator(str(exported), compute_type=kind, intra_threads=torch.get_num_threads())
    pieces = json.loads((exported / "shared_vocabulary.json").read_text(encoding="utf-8"))
    names = [pieces[first[prompt] : first[prompt] + ROWS] for prompt in range(PROMPTS)]
    number = {piece: i for i, piece in enumerate(pieces[: vocabulary.size])}

    def answer(requests: list[Request]) -> list[str]:
        ids = _ids(vocabulary, requests)
        sources = [
            [*names[request.prompt % PROMPTS], *(pieces[i] for i in own)]
            for request, own in zip(requests, ids, strict=True)
        ]
        found = translator.translate_batch(sources, beam_size=1, max_decoding_length=TOKENS)
        return [vocabulary.decode([number[piece] for piece in one.hypotheses[0]]) for one in found]

    batcher = Batcher(answer, lambda _: 0)
    yield batcher.ask
    batcher.close()


def _ids(vocabulary: Vocabulary, requests: Sequence[Request]) -> list[list[int]]:
    return [[*ids, vocabulary.eos] for ids in vocabulary.encode_batch([request.text for request in requests])]


def _generated(model: Any, vocabulary: Vocabulary, ids: Sequence[Sequence[int]]) -> list[str]:
    ids_BS = torch.tensor(padded([np.array(own) for own in ids], 0)).long()
    found = model.generate(
        input_ids=ids_BS, attention_mask=(ids_BS != 0).long(), max_new_tokens=TOKENS, do_sample=False
    )
    return [vocabulary.decode([i for i in row[1:] if i > 1]) for row in found.tolist()]
