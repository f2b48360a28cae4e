"""What a user may write, and what is refused, before anything is trained: losses, adapter targets, trainer arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpo_helpers import TEMPLATE, make_tokenizer, pair_rows, train, write_jsonl
from transformers import AutoTokenizer

from dpo.chat import template_id
from dpo.train.train_config import TrainConfig
from dpo.train.trl_settings import loss_types, trl_config
from judge_pipeline.common.errors import UserError

ALL = ("--eval-fraction", "0", "--max-steps", "1")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows(2))


REFUSED = {
    "loss": (("--loss-type", "sigmoyd"), "no loss 'sigmoyd'", "did you mean 'sigmoid'"),
    "target": (("--lora.targets", "q_porj"), "no layer is named 'q_porj'", "did you mean 'q_proj'"),
    "pattern": (("--lora.targets", ".*_proj"), "no layer is named '.*_proj'", "all-linear"),
    "head": (("--lora.targets", "q_proj", "lm_head"), "'lm_head'", "log-probabilities"),
    "combination": (("--loss-type", "exo_pair"), "Label smoothing", ""),
    "trl has it": (("--trainer-args", "beta=0.3"), "'beta' has a setting of its own", "--beta"),
    "other name": (("--trainer-args", "bf16=true"), "'bf16'", "--precision"),
    "evaluation": (("--trainer-args", "eval_strategy=epoch"), "'eval_strategy'", "--eval-steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be_are_refused_at_once(tmp_path, tiny_model, pairs, capsys, case):
    flags, words, hint = REFUSED[case]
    assert train(pairs, tiny_model, tmp_path / "out", *ALL, *flags) == 2
    said = capsys.readouterr().err
    assert words in said
    assert hint in said
    assert not (tmp_path / "out").exists()


def config(pairs: Path, **changes) -> TrainConfig:
    return TrainConfig(pairs=pairs, model="m", output=pairs.parent / "out", device="cpu", **changes)


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (["ipo"], [1.0]),
        (["ipo", "sft"], [1.0, 0.1]),
        (["sft"], [1.0]),
        (["hinge", "sft", "ipo"], [1.0, 0.1, 1.0]),
    ],
)
def test_a_loss_without_weights_gets_the_papers(pairs, losses, weights):
    assert config(pairs, loss_type=losses).loss_weights == weights
    assert config(pairs, loss_type=losses, loss_weights=[0.5] * len(losses)).loss_weights == [0.5] * len(
        losses
    )


def test_every_loss_of_trl_is_known():
    known = loss_types()
    assert {"sigmoid", "sft", "ipo", "hinge", "robust", "apo_zero", "discopop", "sigmoid_norm"} <= set(known)
    assert len(known) == len(set(known)) >= 15


def test_trainer_arguments_that_have_no_setting_are_taken(pairs):
    own = {"save_strategy": "no", "save_total_limit": "7", "disable_tqdm": "false", "adam_epsilon": "1e-6"}
    args = trl_config(config(pairs, trainer_args=own), evaluates=False)
    assert (args.save_strategy, args.save_total_limit, args.disable_tqdm) == ("no", 7, False)
    assert args.adam_epsilon == 1e-6
    with pytest.raises(UserError, match="TRL refuses"):
        trl_config(config(pairs, trainer_args={"save_strategy": "sometimes"}), evaluates=False)


def test_a_tracker_that_has_no_setting_is_a_trainer_argument(tmp_path, tiny_model, pairs):
    flags = (*ALL, "--trainer-args", "report_to=tensorboard")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0


def test_named_chat_templates_are_one_models_template(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "named"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder)
    named = {"default": TEMPLATE, "tool_use": TEMPLATE.replace("'<|start|>'", "'<|start|>tools '")}
    make_tokenizer(named).save_pretrained(folder)
    assert isinstance(AutoTokenizer.from_pretrained(folder).chat_template, dict)
    rows = [{**row, "template": template_id(named)} for row in pair_rows(2)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert train(pairs, folder, tmp_path / "out", *ALL) == 0
    assert template_id(named) != template_id({**named, "tool_use": TEMPLATE})
