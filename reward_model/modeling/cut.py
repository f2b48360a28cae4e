"""A model cut at a layer: what lies above a readout need not run.

In: a loaded model. Out: the same object without its upper layers and final norm, so that its final hidden states are
those of the layer. In memory only: a cut model is never saved, and its head has nothing to do with these states.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from reward_model.modeling.features import decoder_layers
from reward_model.shared_prefix.interface import unwrap

logger = logging.getLogger(__name__)
FINAL_NORMS = ("norm", "final_norm", "ln_f", "final_layernorm", "final_layer_norm")
"""What transformers' decoders call the norm after their last layer."""


@torch.no_grad()
def cut_above(model: nn.Module, layer: int) -> bool:
    """Drop the layers above `layer` (as ``hidden_states`` count) and the final norm; whether that was possible.

    A few tokens are read before and after; a model whose states would change is left as it was.
    """
    stack = decoder_layers(model)
    owner = next(m for m in unwrap(model).modules() if any(child is stack for child in m.children()))
    names = [name for name in FINAL_NORMS if isinstance(getattr(owner, name, None), nn.Module)]
    if not 0 < layer < len(stack) or len(names) != 1:
        return False
    stack_name = next(name for name, child in owner.named_children() if child is stack)
    config, norm = unwrap(model).config.get_text_config(), getattr(owner, names[0])
    depth = config.num_hidden_layers
    expected = _states(model)[layer]
    setattr(owner, stack_name, stack[:layer])
    setattr(owner, names[0], nn.Identity())
    config.num_hidden_layers = layer
    found = _states(model)[-1]
    if found.shape == expected.shape and torch.equal(found, expected):
        return True
    logger.warning("this model cannot be cut at layer %d, so all of its layers run", layer)
    setattr(owner, stack_name, stack)
    setattr(owner, names[0], norm)
    config.num_hidden_layers = depth
    return False


def _states(model: nn.Module) -> tuple[torch.Tensor, ...]:
    inner = unwrap(model)
    ids = torch.arange(1, 9, device=inner.device)[None] % inner.config.get_text_config().vocab_size
    return inner.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
