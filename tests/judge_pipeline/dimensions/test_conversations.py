"""A prompt that is a conversation is judged as one: every dimension is asked with all of its turns."""

from __future__ import annotations

from judging import PlainDocument, RuleJudge, drive

from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions

TURNS = [
    {"role": "user", "content": "When was it built?"},
    {"role": "assistant", "content": "In 1887."},
    {"role": "user", "content": "What did it burn then?"},
]


def test_every_dimension_is_asked_with_the_turns_before_the_question():
    prompt = Prompt(
        id="p",
        context="Built in 1887. It burned oil.",
        query="What did it burn then?",
        messages=TURNS,
        responses=[{"id": "a", "text": "It burned oil."}],
    )
    for name in DIMENSIONS:
        done = drive(
            build_dimensions([name], JudgeOptions()), prompt, PlainDocument(prompt.context), RuleJudge()
        )
        asked = [call for call in done.calls if "What did it burn then?" in call.messages[-1].content]
        assert asked, name
        assert all("User: When was it built?" in call.messages[-1].content for call in asked), name
