# SPDX-License-Identifier: Apache-2.0
"""Running requests as an iterator of pieces: submits, waits, hands text over as it becomes certain, cancels what is
left. Made by Model.generate() and Model.chat()."""
from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_WINDOW = 256  # requests that the engine knows at a time; the others wait here, where no queue can be full
_WAIT_SECONDS = 0.05  # a signal is seen this long after it came, at the latest


class TokenLogprob(NamedTuple):
    """One of the best tokens at a position."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of an answer or of a prompt."""

    id: int
    #: Natural logarithm of its probability under the model's own distribution (before penalty, temperature and
    #: filters); None where no log-probabilities were asked for.
    logprob: float | None = None
    #: The best tokens at this position, best first, ties to the lower id; as many as were asked for.
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What is new of one answer."""

    index: int  #: Which of the prompts.
    text: str  #: Whole characters that nothing to come can change; often empty.
    tokens: tuple[Token, ...]
    #: None while the answer goes on; with the last piece "stop", "length" or "cancelled".
    finish: str | None = None


@dataclass
class Answer:
    """One whole answer."""

    text: str  #: Without the end-of-sequence token and without a stop string.
    tokens: list[Token]  #: Those of a stop string included.
    finish: str | None  #: "stop", "length" or "cancelled"; None: not finished.
    prompt_ids: list[int]
    #: Tokens of the prompt from the second on, with log-probabilities; empty unless prompt_logprobs was given.
    prompt_tokens: list[Token]
    cached_prompt_tokens: int = 0  #: Positions of the prompt that an earlier request had computed.

    @property
    def ids(self) -> list[int]:
        """The ids of `tokens`."""
        return [token.id for token in self.tokens]


def _token(raw: tuple[int, float, list[tuple[int, float]]], has_logprobs: bool) -> Token:
    if not has_logprobs:
        return Token(raw[0])
    return Token(raw[0], raw[1], tuple(TokenLogprob(*best) for best in raw[2]))


class Generation(Iterator[Piece]):
    """Answers on their way: an iterator of Piece in the order in which they come, over all prompts.

    A `for` loop that is left, an exception and Ctrl-C (seen within 50 ms) end the requests that still run; so do
    close() and the end of a `with` block. One thread iterates; cancel() may be called from any other.
    """

    def __init__(self, engine: Any, requests: Sequence[dict[str, Any]]) -> None:
        self._engine = engine
        self._requests = requests
        self._answers = [Answer("", [], None, list(request["prompt"]), []) for request in requests]
        self._waiting = collections.deque(range(len(requests)))
        self._running: dict[int, int] = {}  # request id -> index of the prompt
        self._pieces: collections.deque[Piece] = collections.deque()
        self._cancelled: set[int] = set()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        try:
            while not self._pieces:
                self._submit()
                if not self._running:
                    raise StopIteration
                self._engine.wait(list(self._running), _WAIT_SECONDS)
                for request, index in list(self._running.items()):
                    self._poll(request, index)
            return self._pieces.popleft()
        except BaseException:
            self.close()
            raise

    def _submit(self) -> None:
        while self._waiting and len(self._running) < _WINDOW:
            index = self._waiting.popleft()
            if index in self._cancelled:
                self._answers[index].finish = "cancelled"
                self._pieces.append(Piece(index, "", (), "cancelled"))
                continue
            try:
                request = self._engine.submit(**self._requests[index])
            except Exception as error:
                if len(self._requests) == 1:
                    raise
                raise type(error)(f"prompts[{index}]: {error}") from None
            self._running[request] = index
            if index in self._cancelled:  # by another thread, while submit() had let go of the interpreter lock
                self._engine.cancel(request)

    def _poll(self, request: int, index: int) -> None:
        update = self._engine.poll(request)
        answer = self._answers[index]
        has_logprobs = self._requests[index]["logprobs"] >= 0
        tokens = tuple(_token(raw, has_logprobs) for raw in update.tokens)
        answer.text += update.text
        answer.tokens.extend(tokens)
        answer.prompt_tokens.extend(_token(raw, True) for raw in update.prompt_tokens)
        answer.cached_prompt_tokens = update.cached_prompt_tokens
        answer.finish = update.finish
        if update.finish is not None:
            del self._running[request]
        if update.text or tokens or update.finish is not None:
            self._pieces.append(Piece(index, update.text, tokens, update.finish))

    def cancel(self, index: int | None = None) -> None:
        """Ends one answer, or all, at the next step; the iterator then gives its last piece with finish "cancelled".

        An answer that has ended is left as it is. May be called from any thread.
        """
        self._cancelled.update(range(len(self._answers)) if index is None else (index,))
        for request, running in list(self._running.items()):
            if index is None or running == index:
                self._engine.cancel(request)

    def close(self) -> None:
        """Ends what still runs; the iterator is then at its end. Does not wait for the step that is being computed."""
        self._waiting.clear()
        self._pieces.clear()
        while self._running:
            request, _ = self._running.popitem()
            if not self._engine.closed:
                self._engine.forget(request)

    def answers(self) -> list[Answer]:
        """Takes what is left of the iterator and returns all answers, in the order of the prompts."""
        for _ in self:
            pass
        return self._answers

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
