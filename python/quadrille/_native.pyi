# SPDX-License-Identifier: Apache-2.0
"""The compiled part of quadrille."""

from collections.abc import Sequence


def version() -> str:
    """Of library and package."""

def begin_exit() -> None:
    """From here on daemon threads stay in the native calls they are in."""

class Tensor:
    """
    What a call gives back: row-major memory that torch, numpy, jax and cupy take by DLPack without a copy.

    On a GPU a consumer's stream (DLPack's `stream`) is ordered behind the work that writes the tensor; the stream must
    live as long as what it read. float8_e4m3fn travels as uint8.
    """

    @property
    def shape(self) -> tuple:
        """Sizes of the dimensions."""

    @property
    def dtype(self) -> str:
        """
        "bfloat16", "float32", "int32", "float8_e4m3fn", ...: the name that torch and numpy use.
        """

    @property
    def device(self) -> str:
        """"cpu" or "cuda:N"."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""

    @property
    def data_ptr(self) -> int:
        """Address of the first byte."""

    def bits(self) -> Tensor:
        """
        The same memory as uint16 (of bfloat16) or uint8: how numpy, which has no such types, can hold it.
        """

    def numpy(self) -> object:
        """
        A numpy array over the same memory; of bfloat16 a float32 array of the same values (a copy).
        """

    def __array__(self, dtype: object | None = None, copy: bool | None = None) -> object: ...

    def __dlpack__(self, *, stream: object | None = None, max_version: tuple[int, int] | None = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...

    def __len__(self) -> int: ...

    def __repr__(self) -> str: ...

class Place:
    """Threads and kernels of the CPU that host layers compute with."""

    def __init__(self, threads: int = 0, kernels: str = '') -> None: ...

    @property
    def threads(self) -> int: ...

    @property
    def kernels(self) -> str: ...

class Weights:
    """Prepared weights of one matrix of each expert."""

    @property
    def device(self) -> str: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def n(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def prepared(self) -> bool: ...

    def synchronize(self) -> None: ...

def check_in_place(name: str, tensors: dict, source: int, numerics: int, group_size: int, num_parts: int, stacked: bool) -> None: ...

def prepare_weights(name: str, tensors: dict, source: int, numerics: int, group_size: int, num_parts: int, stacked: bool, place: Place | None, stream: object | None, in_place: bool) -> Weights: ...

class Layer:
    """An MoE layer over prepared weights."""

    def __init__(self, weights: dict, options: dict, place: Place | None, stream: object | None) -> None: ...

    @property
    def device(self) -> str: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def top_k(self) -> int: ...

    def workspace_bytes(self, num_tokens: int) -> int: ...

    def run(self, x: object, router_logits: object | None, topk_ids: object | None, topk_weights: object | None, out: object | None, stream: object | None, workspace: object | None) -> object: ...

class Linear:
    """A linear layer over prepared weights."""

    def __init__(self, weights: object, rounding: int, place: object | None) -> None: ...

    @property
    def device(self) -> str: ...

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    def workspace_bytes(self, num_rows: int) -> int: ...

    def run(self, x: object, out: object | None, stream: object | None, workspace: object | None) -> object: ...

def prepare(name: str, tensors: dict, source: int, numerics: int, group_size: int, num_parts: int, stacked: bool, place: Place, layout: int) -> Tensor: ...

def unprepare(prepared: object) -> dict: ...

def quantize(weight: object, group_size: int, quotient: int, place: Place) -> tuple: ...

def split_scales(scales: object) -> tuple: ...

def scale_tables(group_scale8: object) -> Tensor: ...

def packed_scale_tables(group_scale8: object) -> Tensor: ...

def convert_words(words: object, conversion: int) -> Tensor: ...

def reorder_words(words: object) -> Tensor: ...

def words_to_e4m3(words: object, group_scale8: object, group_size: int) -> Tensor: ...

class Tokenizer:
    """qd_tokenizer; quadrille.Tokenizer is what to use."""

    @staticmethod
    def load(folder: str) -> Tokenizer: ...

    def describe(self) -> str: ...

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...

    def token_id(self, token: str) -> int: ...

    def token_text(self, id: int) -> str: ...

    def render_chat(self, messages: str, add_generation_prompt: bool, variables: str) -> str: ...

class Update:
    """qd_update: what is new of a request."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> list[tuple[int, float, list[tuple[int, float]]]]: ...

    @property
    def prompt_tokens(self) -> list[tuple[int, float, list[tuple[int, float]]]]: ...

    @property
    def finish(self) -> str | None: ...

    @property
    def cached_prompt_tokens(self) -> int: ...

class Model:
    """qd_model; quadrille.Model is what to use."""

    @staticmethod
    def load(folder: str, *, device: str, kernels: str | None, gpu_memory: str | None, numerics: int, rounding: int, threads: int, tp: int, run_weight_only_as_fp8: bool, round_scales: bool, prefix_cache: bool, cache_tokens: int, max_sequences: int, max_batch_tokens: int, progress: object | None) -> Model: ...

    def close(self) -> None: ...

    @property
    def closed(self) -> bool: ...

    def describe(self) -> str: ...

    def metrics(self) -> str: ...

    def tokenizer(self) -> Tokenizer: ...

    def submit(self, *, prompt: Sequence[int], max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int, stop: Sequence[str], stop_ids: Sequence[int], ignore_stop_ids: bool, logprobs: int, prompt_logprobs: int) -> int: ...

    def poll(self, id: int) -> Update: ...

    def wait(self, ids: Sequence[int], seconds: float) -> None: ...

    def cancel(self, id: int) -> None: ...

    def forget(self, id: int) -> None: ...

    def logits(self, ids: Sequence[int], vocab_size: int, progress: object | None) -> Tensor: ...

def describe_folder(folder: str) -> str: ...

def legal_tp(model: str, max_ranks: int) -> str: ...

def plan(model: str, *, gpu: str, gpus: int, tp: int, ep: int, gpus_per_host: int, decode_tokens: int, context: int, prefill_tokens: int, group_size: int, gpu_memory_gib: float, replicated_attention: bool) -> str: ...

def quantize_folder(folder: str, out: str, *, group_size: int, bf16_quotient: bool, ignore: Sequence[str], threads: int, progress: object | None) -> str: ...

def prepare_folder(folder: str, out: str, *, numerics: int, run_weight_only_as_fp8: bool, round_scales: bool, threads: int, progress: object | None) -> str: ...
