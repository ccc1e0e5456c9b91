# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, and conversations to prompts, as a model folder's own files say. Used alone or as
Model.tokenizer."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from quadrille import _native
from quadrille.arguments import integer, token_ids
from quadrille.arguments import text as checked_text


class Tokenizer:
    """The tokenizer of a model folder; the results are those of the Hugging Face tokenizers library.

    Immutable; several threads may call one tokenizer at once. It needs no weights, and lives on when the model that it
    was taken from is gone.
    """

    __slots__ = ("_native", "_about", "__weakref__")

    def __init__(self, native: _native.Tokenizer) -> None:
        self._native = native
        self._about = json.loads(native.describe())
        self._about["special_ids"] = frozenset(self._about["special_ids"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads tokenizer.json and, where they are there, tokenizer_config.json, special_tokens_map.json and
        chat_template.jinja of the folder `path`.

        Raises FileNotFoundError without a tokenizer.json, ValueError for files that break their format,
        NotImplementedError for kinds of tokenizer other than BPE; each names file and key.
        """
        return cls(_native.Tokenizer.load(os.fspath(path)))

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`.

        add_special_tokens: with what the tokenizer puts around a text (a leading <s>).
        parse_special: False reads special tokens in `text` as plain text, for text from strangers.
        """
        return self._native.encode(checked_text("text", text), add_special_tokens, parse_special)

    def decode(self, ids: Iterable[SupportsIndex], *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`; ids without a token give none, bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for negative ids.
        """
        return self._native.decode(token_ids("ids", ids), skip_special_tokens)

    def apply_chat_template(self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True,
                            **variables: Any) -> str:
        """The prompt of a conversation, by the model's own template.

        messages: {"role": "system" | "user" | "assistant" | ..., "content": ..., ...}, in order; what json can write.
        variables: go to the template as they are (enable_thinking=False).
        Encode the result with add_special_tokens=False: a template writes them itself.
        Raises FileNotFoundError for a model without a template, ValueError for what the template itself refuses.
        """
        return self._native.render_chat(json.dumps(list(messages)), add_generation_prompt, json.dumps(variables))

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder brings a chat template."""
        return self._about["has_chat_template"]

    @property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        return self._about["vocab_size"]

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, if there is one."""
        return self._about["bos_id"]

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text, if there is one."""
        return self._about["eos_id"]

    def token_id(self, token: str) -> int | None:
        """The id of a token as it stands in the vocabulary; None when it is not there."""
        id = self._native.token_id(checked_text("token", token))
        return None if id < 0 else id

    def token_text(self, id: int) -> str:
        """The token as it stands in the vocabulary (byte-level characters, U+2581); "" for an id without one."""
        return self._native.token_text(integer("id", id, -(2**31), 2**31 - 1))

    def is_special(self, id: int) -> bool:
        """Whether `id` is a special token (<s>, <|im_end|>)."""
        return id in self._about["special_ids"]

    def __repr__(self) -> str:
        return f"quadrille.Tokenizer({self.vocab_size} ids)"
