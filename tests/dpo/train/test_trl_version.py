"""A TRL whose internals moved is refused at the start, with the release that fits."""

from __future__ import annotations

import pytest
import trl
from packaging.specifiers import SpecifierSet
from trl import DPOTrainer
from trl.trainer import utils

from dpo.train.trl_version import OVERRIDDEN, SUPPORTED, check_trl
from judge_pipeline.common.errors import UserError


def test_the_installed_trl_fits():
    check_trl()
    assert SpecifierSet(SUPPORTED).contains(trl.__version__)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_method_that_is_gone_or_changed_is_named(monkeypatch, name):
    wanted = rf"trl {trl.__version__} .* lacks: DPOTrainer\.{name}\((.|\n)*pip install 'trl>=1\.16,<1\.17'"
    with monkeypatch.context() as patch:
        patch.delattr(DPOTrainer, name)
        with pytest.raises(UserError, match=wanted):
            check_trl()
    monkeypatch.setattr(DPOTrainer, name, lambda self, inputs: None)
    with pytest.raises(UserError, match=wanted):
        check_trl()


def test_results_that_are_gone_are_named(monkeypatch):
    monkeypatch.delattr(utils, "FusedCausalLMOutput")
    with pytest.raises(UserError, match=r"FusedCausalLMOutput\.log_probs"):
        check_trl()


def test_a_fused_call_or_counts_that_are_gone_are_named(monkeypatch):
    class Other:
        pass

    for name in OVERRIDDEN:
        setattr(Other, name, getattr(DPOTrainer, name))
    monkeypatch.setattr("dpo.train.trl_version.DPOTrainer", Other)
    with pytest.raises(UserError, match=r"_total_train_tokens(.|\n)*fused_lm_head=True"):
        check_trl()
