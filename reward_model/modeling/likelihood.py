"""How likely a language model finds answers: a baseline that costs one reading and no label.

In: the causal language model a reward model was trained from, and encoded prompts. Out: sum and mean of the
log-probabilities of each answer's tokens, its end token included. A document is read once for all its answers, long
ones in chunks; only answer positions go through the LM head, in tiles. The last token of the prefix predicts an
answer's first: it is read again at the head of every answer, where its hidden state is the same.

Shape suffixes: A answers of all prompts, T tokens of a pass, C tokens that predict.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from reward_model.data.batches import token_batches
from reward_model.modeling.features import passes
from reward_model.modeling.model import Manifest, scale_rope
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.interface import unwrap
from reward_model.shared_prefix.layout import EncodedPrompt, Ids, Span
from reward_model.shared_prefix.logps import HeadShape, token_stats

Tensor = torch.Tensor


def base_model_is_local(name: str) -> bool:
    """Whether a base model can be loaded without a download."""
    try:
        AutoConfig.from_pretrained(resolve_model(name), local_files_only=True)
    except (UserError, OSError, ValueError):
        return False
    return True


def load_language_model(
    manifest: Manifest, device: torch.device | str | None = None, shared: bool = True
) -> nn.Module:
    """The causal language model behind a reward model, with its window, ready to read shared prefixes.

    Raises:
        UserError: it cannot be loaded, or cannot share a prefix exactly.
    """
    path = resolve_model(manifest.base_model)
    try:
        config = AutoConfig.from_pretrained(path)
        if manifest.rope_parameters:
            scale_rope(config, manifest.rope_parameters)
        model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(
            f"could not load '{manifest.base_model}' as a language model: {error}",
            "leave the baseline out with --likelihood off",
        ) from error
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return prepare_shared_prefix(model, chunked=True) if shared else model


@torch.no_grad()
def answer_log_probs(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    *,
    token_budget: int,
    shared: bool = True,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """(sums (A,), means (A,)), fp64 on CPU, of the log-probabilities of the tokens of each answer.

    Args:
        model: a causal language model in evaluation mode; prepared by ``enable_shared_prefix`` when `shared`.
        prompts: within the model's window, at least two tokens before an answer.
        token_budget: tokens a pass; a longer prompt is read in chunks.
        shared: read a prompt once for all its answers; False reads each answer alone.
        progress: counts the prompts that are read.
    """
    turned = [_turned(prompt) for prompt in prompts]
    found: dict[int, list[float]] = {}
    for group in token_batches(turned, token_budget):
        answers = [answer for index in group for answer in turned[index].answers]
        sums: list[float] = []
        for forward, spans in passes(model, [turned[index] for index in group], token_budget, shared):
            sums += _sums(model, forward(), spans, answers[len(sums) : len(sums) + len(spans)])
        for index in group:
            count = len(turned[index].answers)
            found[index], sums = sums[:count], sums[count:]
        if progress is not None:
            progress.update(len(group))
    total = torch.tensor(
        [value for index in range(len(prompts)) for value in found[index]], dtype=torch.float64
    )
    lengths = [len(answer) for prompt in prompts for answer in prompt.answers]
    return total, total / torch.tensor(lengths, dtype=torch.float64)


def _turned(prompt: EncodedPrompt) -> EncodedPrompt:
    """The last token of the prefix moved to the head of every answer."""
    head = prompt.prefix[-1:]
    return EncodedPrompt(
        prompt.prefix[:-1], tuple(np.concatenate([head, answer]) for answer in prompt.answers)
    )


def _sums(
    model: nn.Module, hidden_T_H: Tensor, spans_N: Sequence[Span], answers: Sequence[Ids]
) -> list[float]:
    """Sum of the log-probabilities of each answer's tokens, its first one (which is the prefix's) left out."""
    head = unwrap(model).get_output_embeddings()
    index = torch.cat([torch.arange(start, stop - 1) for start, stop in spans_N])
    targets_C = torch.from_numpy(np.concatenate([answer[1:] for answer in answers]).astype(np.int64))
    device = hidden_T_H.device
    shape = HeadShape.of(unwrap(model).config.get_text_config())
    bias = getattr(head, "bias", None)
    stats = token_stats(hidden_T_H[index.to(device)], head.weight, bias, targets_C.to(device), shape)
    lengths = [len(answer) - 1 for answer in answers]
    return [float(piece.double().sum()) for piece in stats.log_probs.cpu().split(lengths)]
