import hashlib
import json
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from judging import PlainDocument, RuleJudge, case_of, drive

from judge_pipeline.calls.call import Reply, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import REGISTRY, build_dimensions
from judge_pipeline.documents.words import detect_language
from judge_pipeline.prompts.fences import escape_control_tokens, fence, numbered, one_line
from judge_pipeline.prompts.templates import PROMPTS, build_call, load_template, parse_template
from judge_pipeline.replies.choices import ChoiceShape
from judge_pipeline.replies.lists import Items, ListShape
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import JointShape, RatingShape
from judge_pipeline.replies.verdicts import VerdictShape, VerdictsShape

FILES = sorted(PROMPTS.glob("*/*.txt"))
OF_DIMENSIONS = [path for path in FILES if not path.stem.startswith("baseline.")]


def shape_for(name, language, example=None):
    kind = name.split(".")[1]
    if kind == "extract":
        field = "key_points" if name.startswith(("completeness", "plan")) else "statements"
        return ListShape(language, field=field)
    if kind == "pairwise":
        return ChoiceShape(language)
    if kind == "verify":
        return VerdictShape(language)
    if kind == "verify_many":
        return VerdictsShape(language, count=len(example["statements"].splitlines()) if example else 3)
    if name.startswith("joint"):
        return JointShape(language)
    if kind == "cover":
        return RatingShape(language, key_points=len(example["key_points"].splitlines()) if example else 3)
    return RatingShape(language)


def test_every_template_exists_in_both_languages():
    english, chinese = (
        {path.name for path in (PROMPTS / language).glob("*.txt")} for language in ("en", "zh")
    )
    assert english == chinese
    assert len(english) == 15


@pytest.mark.parametrize("path", OF_DIMENSIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_examples_are_replies_we_read_the_same_in_both_protocols(path):
    language = path.parent.name
    template = load_template(path.stem, language)
    assert template.examples
    for example in template.examples:
        shape = shape_for(path.stem, language, example)
        read = [
            shape.read(Reply(text=shape.write(example, structured=structured), structured=structured))
            for structured in (False, True)
        ]
        assert not isinstance(read[0], Problem), read[0]
        _same(*read)


def _same(text, data):
    if isinstance(text, dict):
        assert text.keys() == data.keys()
        for key in text:
            _same(text[key], data[key])
    elif hasattr(text, "points"):
        assert (text.analysis, text.points, text.missed) == (
            data.analysis,
            data.points,
            data.missed,
        )
    else:
        assert text == data


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_static_part_comes_first_and_is_the_same_for_all_cases(path):
    template = load_template(path.stem, path.parent.name)
    shape = shape_for(path.stem, path.parent.name)
    names = set(regex.findall(r"\{(\w+)\}", template.case))
    cases = [
        {
            name: [f"{name} {n}"] if name in ("statements", "key_points", "passages") else f"{name} {n}"
            for name in names
        }
        for n in (1, 2)
    ]
    for structured in (False, True):
        one, two = (build_call(template, case, shape, Sampling(), structured=structured) for case in cases)
        assert one.messages[:-1] == two.messages[:-1]
        assert one.messages[-1] != two.messages[-1]
        roles = [message.role for message in one.messages]
        if path in OF_DIMENSIONS:
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            assert one.messages[0].content.startswith(template.parts["task"])
        else:
            assert roles == ["system", "user"]
            assert one.messages[0].content == template.parts["system"]
        assert (one.json_schema is not None) == structured
        assert one.template == path.stem
    positions = [
        template.case.index(f"{{{name}}}")
        for name in ("document", "question", "key_points", "answer")
        if name in names
    ]
    assert positions == sorted(positions), "document and question before the answer, for the prefix cache"


def test_cases_name_their_material_in_fences():
    for path in OF_DIMENSIONS:
        template = load_template(path.stem, path.parent.name)
        assert "-1a2b3c>" in template.parts["task"], path


def test_few_shot_bounds_the_examples():
    template = load_template("helpfulness.rate", "en")
    case = {"question": "q", "answer": "a"}
    for few_shot, turns in ((0, 1), (1, 3), (None, 11), (99, 11)):
        call = build_call(template, case, RatingShape(), Sampling(), structured=False, few_shot=few_shot)
        assert len(call.messages) == turns
        assert call.messages[0].content.startswith(template.parts["task"])


TEMPLATE = """@@ task
Judge {this} not.
@@ text
Rate.
@@ json
JSON.
@@ case
Q: {question}
A: {answer}
@@ example
@ question
eq
@ answer
ea
@ analysis
fine
@ rating
5
"""


def test_placeholders_are_replaced_in_one_pass():
    template = parse_template("t.rate", TEMPLATE)
    fields = {"question": "What is {answer}?", "answer": "It is {question} and {answer}."}
    call = build_call(template, fields, RatingShape(), Sampling(), structured=False)
    last = case_of(call)
    assert "What is {answer}?" in last
    assert "It is {question} and {answer}." in last
    assert "Judge {this} not." in call.messages[0].content


def test_the_version_follows_the_text():
    a = parse_template("t.rate", TEMPLATE)
    b = parse_template("t.rate", TEMPLATE.replace("fine", "good"))
    assert a.version != b.version
    assert a.version == parse_template("t.rate", TEMPLATE).version
    calls = [
        build_call(t, {"question": "q", "answer": "a"}, RatingShape(), Sampling(), structured=False)
        for t in (a, b)
    ]
    assert calls[0].key("m") != calls[1].key("m")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEMPLATE.replace("@@ json\nJSON.\n", ""), "@@ json"),
        (TEMPLATE.replace("@ answer\nea\n", ""), "example 1 lacks '@ answer'"),
    ],
)
def test_a_broken_template_says_what_is_missing(text, says):
    with pytest.raises(UserError, match=regex.escape(says)):
        parse_template("t.rate", text)


def test_a_missing_template_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no prompt file"):
        load_template("nothing.rate", "zh", tmp_path)


# ---- fences ------------------------------------------------------------------------------------------------


@given(st.text(max_size=200))
def test_nothing_inside_closes_its_fence(content):
    made = fence("answer", content)
    tag = regex.match(r"<answer-([0-9a-f]{6})>\n", made)[1]
    assert made.count(tag) == 2
    assert made.endswith(f"\n</answer-{tag}>")
    assert fence("answer", content) == made
    assert content == made[len(tag) + 10 : -len(tag) - 11].replace("\u200b", "") or "\u200b" in content


def test_a_nonce_that_stands_in_the_content_is_not_used():
    content = "x"
    nonce = hashlib.sha256(content.encode()).hexdigest()[:6]
    assert nonce in fence("a", content)
    hostile = content
    made = fence("a", hostile + nonce)
    tag = regex.match(r"<a-([0-9a-f]{6})>", made)[1]
    assert made.count(tag) == 2


@pytest.mark.parametrize(
    "marker",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|assistant|>",
        "[INST]",
        "[/INST]",
        "<s>",
        "</s>",
        "<<SYS>>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<｜Assistant｜>",
        "<bos>",
        "[gMASK]",
        "</think>",
        "<tool_call>",
    ],
)
def test_control_markers_are_broken_and_still_read_the_same(marker):
    text = f"before {marker}assistant after"
    assert marker not in escape_control_tokens(text)
    assert escape_control_tokens(text).replace("\u200b", "") == text


@pytest.mark.parametrize(
    "text", ["a < b and b > c", "x[1] = [2]", "List<String> s", "<p>para</p>", "if (a <|> b)", "<b>s</b>"]
)
def test_ordinary_text_is_left_alone(text):
    assert escape_control_tokens(text) == text


def test_lines_cannot_be_forged():
    assert one_line("a\nS2: b\u2028S3: c\x0bd\x85e") == "a S2: b S3: c d e"
    assert numbered("S", ["a\nS2: b", "c"]) == "S1: a S2: b\nS2: c"


# ---- language ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The lighthouse was finished in 1887.", "en"),
        ("灯塔由莫英设计，于1887年建成。", "zh"),
        ("《Python 3.11 参考手册》介绍了 dict 与 list 的用法，并说明了它们的区别。", "zh"),
        ("灯台は1887年に完成しました。とても古い建物です。", "en"),
        ("등대는 1887년에 완공되었다.", "en"),
        ("Der Leuchtturm wurde 1887 fertig.", "en"),
        ("The word 灯塔 means lighthouse, and this text is about it in English.", "en"),
        ("1887 – 1911", "en"),
    ],
)
def test_the_language_of_a_document(text, language):
    assert detect_language(text) == language


def test_an_english_preface_does_not_hide_a_chinese_document():
    assert detect_language("An English preface. " * 150 + "灯塔由莫英设计，于那一年建成。" * 2000) == "zh"


@pytest.mark.parametrize(("language", "word"), [("auto", "评分"), ("zh", "评分"), ("en", "Rating")])
def test_prompts_follow_the_document_or_the_user(language, word):
    prompt = Prompt(
        id="p", context="灯塔由莫英设计。" * 20, query="谁设计的？", responses=[{"id": "a", "text": "莫英。"}]
    )
    dimensions = build_dimensions(["helpfulness"], JudgeOptions(language=language))
    run = drive(dimensions, prompt, PlainDocument(prompt.context), lambda call: f"好。\n{word}：[[8]]")
    assert run.calls[0].messages[1].content.splitlines()[-1].startswith(word)
    assert run.outcomes[0].score == 8


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("structured", [False, True])
def test_all_templates_render_in_real_plans(language, structured):
    prompt = Prompt(
        id="p",
        context="One. Two. " * 90,
        query="q?",
        responses=[{"id": "a", "text": "One. Two."}, {"id": "b", "text": "Three."}],
    )
    seen = set()
    for options in ({}, {"statements_per_call": 3, "joint_ratings": True}):
        options = JudgeOptions(language=language, structured=structured, **options)
        run = drive(
            build_dimensions(list(REGISTRY), options), prompt, PlainDocument(prompt.context), RuleJudge()
        )
        assert all(outcome.score is not None for outcome in run.outcomes)
        seen |= {call.template for call in run.calls}
        for call in run.calls:
            assert not regex.search(
                r"\{(question|answer|document|passages|statements?|key_points)\}", case_of(call)
            )
            json.dumps(call.json_schema)
    assert seen == {path.stem for path in OF_DIMENSIONS}


def test_prompts_are_shipped_as_text():
    assert all(isinstance(path, Path) and path.read_text(encoding="utf-8").endswith("\n") for path in FILES)


def test_an_empty_example_list_is_the_word_for_nothing():
    for language, word in (("en", "NONE"), ("zh", "无")):
        shape = ListShape(language)
        assert shape.write({"statements": ""}, structured=False) == word
        assert shape.read(Reply(text=word)) == Items(())
