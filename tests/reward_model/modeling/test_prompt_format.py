"""Texts become the same ids for a shared prefix, for a plain model and for a server that tokenizes text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from reward_model.modeling.prompt_format import PromptFormat, PromptRenderer

_tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2"))
_renderer = PromptRenderer(_tokenizer, PromptFormat.from_tokenizer(_tokenizer))
CONTROL = [str(token) for token in _tokenizer.all_special_tokens]
plain_text = st.text(max_size=60).filter(lambda text: not any(token in text for token in CONTROL))


def byte_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """One token a byte, with the control tokens asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


@given(context=plain_text, query=plain_text, response=plain_text)
@settings(max_examples=150, deadline=None)
def test_rendered_text_tokenizes_to_the_same_ids(context: str, query: str, response: str) -> None:
    text = _renderer.render_text(context, query, response)
    ids = _renderer.prefix_ids(context, query) + _renderer.answer_ids(response)
    assert _tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_the_chat_template_gives_the_same_ids() -> None:
    user = "A document.\n\nA question?"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "An answer."}]
    theirs = _tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    ours = _renderer.prefix_ids("A document.", "A question?") + _renderer.answer_ids("An answer.")
    assert theirs[: len(ours)] == ours
    assert _tokenizer.decode(theirs[len(ours) :]) == "\n"
    assert _renderer.text_exact


@given(st.lists(st.sampled_from([*CONTROL, "a", "\n", "[[10]]", "{query}", "{context}", " "]), max_size=8))
@settings(max_examples=60, deadline=None)
def test_hostile_text_makes_no_control_token(pieces: list[str]) -> None:
    text = "".join(pieces)
    control = set(_tokenizer.all_special_ids)
    ids = _renderer.prefix_ids(text, text)
    frame = _renderer.prefix_ids("x", "x")
    assert [i for i in ids if i in control] == [i for i in frame if i in control]
    answer = _renderer.answer_ids(text)
    assert [i for i in answer if i in control] == _renderer.end_ids
    assert answer[-1] == _renderer.end_ids[-1]


def test_placeholders_in_a_document_stay_text() -> None:
    prefix = _tokenizer.decode(_renderer.prefix_ids("doc with {query} in it", "the question {context}"))
    assert "doc with {query} in it\n\nthe question {context}" in prefix


def test_text_for_other_programs_is_refused_when_it_would_be_misread() -> None:
    with pytest.raises(UserError, match="control token") as caught:
        _renderer.render_text("a <|im_end|> b", "q", "r")
    assert "token ids" in str(caught.value.hint)


def test_a_prefix_does_not_depend_on_the_answer_and_without_document_is_the_question() -> None:
    assert (
        _renderer.prefix_ids("", "Q?")
        == _tokenizer(_renderer.format.head + "Q?" + _renderer.format.middle, add_special_tokens=False)[
            "input_ids"
        ]
    )
    assert _renderer.answer_ids("\n  x") == _renderer.answer_ids("x")
    assert _renderer.answer_ids("") == _renderer.end_ids


def test_a_model_without_chat_template() -> None:
    tokenizer = byte_tokenizer(eos_token="</s>", bos_token="<s>")
    renderer = PromptRenderer(tokenizer, PromptFormat.from_tokenizer(tokenizer))
    assert renderer.text_exact
    ids = renderer.prefix_ids("D", "Q") + renderer.answer_ids("A</s>")
    assert tokenizer.decode(ids) == "<s>Document and question:\nD\n\nQ\n\nAnswer:\nA</s></s>"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_a_template_without_control_token_ends_answers_with_eos() -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    prompt_format = PromptFormat.from_tokenizer(tokenizer)
    assert (prompt_format.head, prompt_format.middle, prompt_format.end) == (
        "user: ",
        "\nassistant: ",
        "</s>",
    )


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(UserError, match="end-of-sequence"):
        PromptFormat.from_tokenizer(byte_tokenizer())
    tokenizer = byte_tokenizer(eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError, match="each message once"):
        PromptFormat.from_tokenizer(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('only system messages') }}"
    with pytest.raises(UserError, match="only system messages"):
        PromptFormat.from_tokenizer(tokenizer)


def test_a_tokenizer_that_cannot_be_sent_text_is_known() -> None:
    """SentencePiece-style tokenizers mark the first piece of a text, so runs cut at control tokens differ."""
    vocabulary = {char: i for i, char in enumerate("▁abcdefghijklmnopqrstuvwxyzSAQY?.,:1\n")}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}</s>{{ m.content }}{% endfor %}</s>"
    renderer = PromptRenderer(tokenizer, PromptFormat.from_tokenizer(tokenizer))
    assert not renderer.text_exact
    assert renderer.answer_ids("a") == [
        *tokenizer("a", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
