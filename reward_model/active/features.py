"""Frozen features of answers: the hidden state at each answer's score token, one reading of the document for all.

In: a reward model and a prompt with answers. Out: an array (N, H) in fp32, what the model's own head sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reward_model.active.choice import Floats
from reward_model.options import TOKEN_BUDGET
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.chunked import chunked_hidden
from reward_model.shared_prefix.interface import hidden_one_by_one, shared_forward
from reward_model.shared_prefix.layout import join_ids


@torch.no_grad()
def answer_features(
    model: RewardModel, context: str, query: str, responses: Sequence[str], token_budget: int = TOKEN_BUDGET
) -> Floats:
    """Hidden states (N, H) at the score tokens of N answers.

    Raises:
        UserError: the prompt is longer than the model's window.
    """
    encoded = model.encode(context, query, responses)
    model._check_length(encoded, 0)
    if model.shared == "off":
        hidden = hidden_one_by_one(model.model, encoded.prefix, encoded.answers)
    elif encoded.shape.total > token_budget:
        hidden = chunked_hidden(model.model, encoded.prefix, encoded.answers, token_budget)
    else:
        input_ids, layout = join_ids([(encoded.prefix, encoded.answers)], model.device)
        hidden = shared_forward(model.model, input_ids, layout)[layout.score_index(model.device)]
    return np.asarray(hidden.float().cpu().numpy(), dtype=np.float64)
