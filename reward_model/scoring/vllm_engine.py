"""Scoring with vLLM: the saved model as `classify`, a document's keys and values cached for all its answers.

In: token ids of prompts and answers. Out: the same points as the torch engine, up to the arithmetic's rounding
(3e-4 points in fp32, 0.15 in bf16). vLLM reads the model directory with no code of ours: `problem_type` regression
means that its outputs are the raw points.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES
from judge_pipeline.engines.vllm_in_process import stop_vllm
from reward_model.modeling.model import read_manifest
from reward_model.modeling.prompt_format import PromptRenderer
from reward_model.shared_prefix.layout import EncodedPrompt, Ids, PromptShape

logger = logging.getLogger(__name__)
Array = NDArray[np.floating[Any]]


class VllmEngine:
    """A reward model in vLLM."""

    def __init__(
        self,
        path: Path | str,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
    ) -> None:
        """Start the engine (tens of seconds).

        Raises:
            UserError: vLLM is not installed, or the directory holds an adapter that was not merged.
        """
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                "--engine vllm: vLLM is not installed here",
                f"{INSTALL_LINES['vllm']} (a GPU), or use --engine torch, which gives the same scores",
            )
        manifest = read_manifest(path)
        if manifest.adapter:
            raise UserError(
                f"{path} is an adapter, and vLLM needs plain weights",
                "train with --merge, or use --engine torch",
            )
        if manifest.readout is not None:
            logger.info(
                "vLLM scores with the plain head; this model's readout (%s) needs --engine torch",
                manifest.readout.describe(),
            )
        from vllm import LLM

        self.renderer = PromptRenderer(AutoTokenizer.from_pretrained(path), manifest.prompt_format)
        self.tokens_read = 0
        self._dimensions = len(manifest.dimensions)
        self._llm: Any = LLM(
            model=str(path),
            runner="pooling",
            convert="classify",
            dtype=dtype,
            max_model_len=manifest.max_length,
            enable_prefix_caching=True,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            enforce_eager=enforce_eager,
        )

    reads = "plain head"

    def readings(self, prompt: EncodedPrompt) -> list[PromptShape]:
        """Token counts of what is read to score a prompt."""
        return [prompt.shape]

    def encode(self, context: str, query: str, responses: Sequence[str]) -> EncodedPrompt:
        """Tokenise, as the torch engine does."""
        return self.renderer.encode(context, query, responses)

    def score_encoded(self, prompts: Sequence[EncodedPrompt], token_budget: int = 0) -> Iterator[Array]:
        """Points (N, D) of each prompt, in order. vLLM makes its own batches: `token_budget` is not used.

        The first answer of every prompt goes ahead alone: answers that arrive together with their document would
        each read it, because a prefix is found in the cache only once somebody has finished it.
        """
        first = self._classify([(prompt.prefix, prompt.answers[0]) for prompt in prompts])
        rest = self._classify(
            [(prompt.prefix, answer) for prompt in prompts for answer in prompt.answers[1:]]
        )
        places = iter(rest)
        for lead, prompt in zip(first, prompts, strict=True):
            yield np.stack([lead, *(next(places) for _ in prompt.answers[1:])])

    def _classify(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[Array]:
        if not sequences:
            return []
        ids = [{"prompt_token_ids": np.concatenate(pair).tolist()} for pair in sequences]
        outputs = self._llm.classify(ids, use_tqdm=False)
        for output in outputs:
            cached = getattr(output, "num_cached_tokens", None) or 0
            self.tokens_read += len(output.prompt_token_ids) - cached
        points = [np.asarray(output.outputs.probs, np.float32) for output in outputs]
        if any(row.shape != (self._dimensions,) for row in points):
            raise UserError(
                f"vLLM gave {points[0].shape} outputs an answer, the model has {self._dimensions}",
                "this version of vLLM does not read the saved head: use --engine torch",
            )
        return points

    def close(self) -> None:
        """Stop vLLM's processes."""
        stop_vllm(self._llm)
