# SPDX-License-Identifier: Apache-2.0
"""A whole model in memory: answers many requests at once, in continuous batches. The engine computes in threads of its
own; every method may be called from many threads, and none holds the interpreter lock while it computes or waits."""
from __future__ import annotations

import atexit
import json
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, Union, overload

from quadrille import _native
from quadrille._native import Tensor
from quadrille.arguments import callback, integer, number, text, token_ids
from quadrille.folders import Progress, threads_of
from quadrille.generation import Answer, Generation
from quadrille.layers import _NUMERICS, _ROUNDINGS, _choose
from quadrille.tokenizer import Tokenizer

#: A text, which is encoded with the tokenizer's own special tokens around it, or token ids.
Prompt = Union[str, Iterable[SupportsIndex]]

_MANY = 2**31 - 1
_open_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _is_batch(prompts: Any) -> bool:
    """Whether `prompts` is a list of prompts and not one prompt."""
    if isinstance(prompts, str):
        return False
    if hasattr(prompts, "ndim"):
        return prompts.ndim != 1
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts: expected a text, token ids or a list of those, found {type(prompts).__name__}")
    return len(prompts) == 0 or not hasattr(type(prompts[0]), "__index__")


class Model:
    """A model folder, loaded. Made by Model.load(); ends with close(), a `with` block, or when nobody refers to it."""

    __slots__ = ("_native", "_about", "_tokenizer", "__weakref__")

    def __init__(self, native: _native.Model) -> None:
        self._native = native
        self._about = json.loads(native.describe())
        self._tokenizer = Tokenizer(native.tokenizer()) if self._about["has_tokenizer"] else None
        _open_models.add(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "cpu", numerics: str = "exact", tp: int = 1,
             rounding: str = "bf16", kernels: str | None = None, threads: int | None = None,
             gpu_memory: str | None = None, cache_tokens: int | None = None, max_sequences: int = 64,
             max_batch_tokens: int = 512, prefix_cache: bool = False, run_weight_only_as_fp8: bool = False,
             round_scales: bool = False, progress: Progress | None = None) -> Model:
        """Loads a checkpoint or a prepared folder; returns when it can answer.

        device: "cpu", "cuda" or "cuda:N", the first of `tp` GPUs. numerics: "exact" or "vllm" (docs/numerics.md).
        tp: tensor-parallel ranks, threads of this process; legal_tp() says which sizes are.
        rounding: "bf16", or "f32" (CPU alone) for comparing with fp32. kernels: a table of the CPU ("avx512"); None is
        the best that runs here. threads: of all ranks; None is one for each usable core.
        gpu_memory: that each GPU may use, "20GiB" or "0.8" of it; None is all that is free.
        cache_tokens: positions of the key/value cache; None is 8,192 on a CPU and what is free on a GPU.
        max_sequences: requests that run at a time, the others wait; max_batch_tokens: of one step. Neither changes an
        answer. prefix_cache: positions that prompts share are computed once.
        run_weight_only_as_fp8, round_scales: as in prepare_folder().
        progress: bytes of the checkpoint, at a module.

        Raises FileNotFoundError, ValueError with file and tensor, NotImplementedError (architecture, a tp that the
        model cannot be cut for, no Hopper GPU; says what runs), MemoryError with the numbers.
        """
        return cls(_native.Model.load(
            os.fspath(path), device=text("device", device),
            kernels=None if kernels is None else text("kernels", kernels),
            gpu_memory=None if gpu_memory is None else text("gpu_memory", gpu_memory),
            numerics=_choose("numerics", numerics, _NUMERICS), rounding=_choose("rounding", rounding, _ROUNDINGS),
            threads=threads_of(threads), tp=integer("tp", tp, 1, 64),
            run_weight_only_as_fp8=bool(run_weight_only_as_fp8), round_scales=bool(round_scales),
            prefix_cache=bool(prefix_cache),
            cache_tokens=0 if cache_tokens is None else integer("cache_tokens", cache_tokens, 1, _MANY),
            max_sequences=integer("max_sequences", max_sequences, 1, _MANY),
            max_batch_tokens=integer("max_batch_tokens", max_batch_tokens, 1, _MANY),
            progress=callback("progress", progress)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, which lives on when the model is gone. FileNotFoundError: the folder has none."""
        if self._tokenizer is None:
            raise FileNotFoundError(f"{self._about['folder']}: no tokenizer.json; give prompts as token ids")
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Logits of a position."""
        return self._about["vocab_size"]

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt and answer together: what the model takes and what the cache holds."""
        return min(self._about["max_positions"], self._about["cache_positions"])

    def describe(self) -> dict[str, Any]:
        """How the model runs: "config", "numerics", "round", "kernels", "device", "threads", "tp", "max_positions",
        "cache_positions", "stop_ids", "memory" (bytes), "notes" of the load."""
        return json.loads(self._native.describe())

    def metrics(self) -> dict[str, Any]:
        """Sums since the load and the state after the last step: "steps", "prefill_tokens", "decode_tokens",
        "prefix_hits_tokens", "running", "waiting", "free_pages", "prefill_seconds", "decode_seconds", ..."""
        return json.loads(self._native.metrics())

    def _encode(self, name: str, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else token_ids(name, prompt)

    @overload
    def generate(self, prompts: Prompt, *, stream: Literal[False] = False, **options: Any) -> Answer: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], *, stream: Literal[False] = False,
                 **options: Any) -> list[Answer]: ...
    @overload
    def generate(self, prompts: Prompt | Sequence[Prompt], *, stream: Literal[True],
                 **options: Any) -> Generation: ...
    def generate(  # type: ignore[misc]  # the overloads tell what is returned, this tells the options
            self, prompts: Any, *, max_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0,
            top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0,
            stop: str | Sequence[str] = (), stop_ids: Iterable[SupportsIndex] = (), ignore_eos: bool = False,
            logprobs: int | None = None, prompt_logprobs: int | None = None, stream: bool = False,
    ) -> Answer | list[Answer] | Generation:
        """Continues one prompt, or each of a list of prompts in one batch.

        prompts: a text or token ids, or a list of those. A text is taken as it is; chat() has the model's template.
        max_tokens: of each answer; None is what model and cache leave, at most 512; 0 runs the prompt alone.
        temperature: 0 is greedy. Filters in this order: repetition_penalty (1: off), temperature, top_k (0: off), top_p
        (1: off), min_p (0: off); docs/numerics.md defines each.
        seed: an answer depends on its prompt, these values and the seed alone, not on the batch.
        stop: the text ends before the first of these strings to be complete. stop_ids: end an answer beside the model's
        own ids, which ignore_eos switches off.
        logprobs: None, or n >= 0: log-probabilities of each token and of the n best in its place; prompt_logprobs: the
        same of the prompt's tokens from the second on.
        stream: True returns a Generation, an iterator of pieces of text with cancel().

        Returns the Answer, or a list of Answer in the order of `prompts`. Ctrl-C ends all of them. Raises TypeError and
        ValueError (names argument or prompt), NotImplementedError (stop strings without a tokenizer), MemoryError
        (longer than max_length, with the numbers); then nothing more of the batch is computed.
        """
        is_batch = _is_batch(prompts)
        named = [(f"prompts[{i}]", prompt) for i, prompt in enumerate(prompts)] if is_batch else [("prompts", prompts)]
        options = {
            "max_tokens": -1 if max_tokens is None else integer("max_tokens", max_tokens, 0, _MANY),
            "temperature": number("temperature", temperature), "top_k": integer("top_k", top_k, 0, _MANY),
            "top_p": number("top_p", top_p), "min_p": number("min_p", min_p),
            "repetition_penalty": number("repetition_penalty", repetition_penalty),
            "seed": integer("seed", seed, 0, 2**64 - 1),
            "stop": [text("stop", string) for string in ([stop] if isinstance(stop, str) else stop)],
            "stop_ids": token_ids("stop_ids", stop_ids), "ignore_stop_ids": bool(ignore_eos),
            "logprobs": -1 if logprobs is None else integer("logprobs", logprobs, 0, _MANY),
            "prompt_logprobs": -1 if prompt_logprobs is None else integer("prompt_logprobs", prompt_logprobs, 0, _MANY)}
        generation = Generation(self._native, [{"prompt": self._encode(*pair), **options} for pair in named])
        if stream:
            return generation
        answers = generation.answers()
        return answers if is_batch else answers[0]

    def chat(self, messages: Sequence[Mapping[str, Any]], *, template: Mapping[str, Any] | None = None,
             **options: Any) -> Answer | Generation:
        """The assistant's next message in a conversation, by the model's chat template.

        messages: {"role": "system" | "user" | "assistant", "content": ...}, in order. template: variables that go to
        the template ({"enable_thinking": False}). options: those of generate(), stream=True among them.
        Raises as generate() and Tokenizer.apply_chat_template() do.
        """
        prompt = self.tokenizer.apply_chat_template(messages, **(template or {}))
        return self.generate(self.tokenizer.encode(prompt, add_special_tokens=False), **options)

    def logits(self, ids: Prompt, *, progress: Progress | None = None) -> Tensor:
        """The logits after every token: fp32 [tokens, vocab_size], row-major, in host memory; the same bits as
        `quadrille logits` writes.

        ids: token ids or a text. Runs beside the requests of other threads. progress: tokens.
        Raises ValueError, MemoryError (longer than max_length).
        """
        return self._native.logits(self._encode("ids", ids), self.vocab_size, callback("progress", progress))

    def close(self) -> None:
        """Ends what runs, and frees the memory when the calls that other threads are in have returned."""
        self._native.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        about = self._about
        return f"quadrille.Model({about['folder']!r}, {about['device']}, {about['numerics']})"


@atexit.register
def _close_models() -> None:
    """No thread of an engine outlives the interpreter, and no daemon thread sees its model closed."""
    _native.begin_exit()
    for model in list(_open_models):
        model.close()
