import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import tokens

from judge_pipeline.calls.call import Reply
from judge_pipeline.replies.expected import expected_rating
from judge_pipeline.replies.lists import Items, ListShape
from judge_pipeline.replies.marks import Problem, find_marks, fold, label_pattern
from judge_pipeline.replies.ratings import JointShape, Rating, RatingShape, read_rating
from judge_pipeline.replies.verdicts import (
    VERDICT_WORDS,
    Verdict,
    VerdictShape,
    VerdictsShape,
    read_verdict,
    read_verdicts,
)

ACCEPTED = {
    "[[8]]": 8,
    "[[8.5]]": 8.5,
    "[[8,5]]": 8.5,
    "[[0]]": 0,
    "[[10]]": 10,
    "[[10.0]]": 10,
    "[[ 8 ]]": 8,
    "[[8/10]]": 8,
    "[[8 / 10]]": 8,
    "[[8 out of 10]]": 8,
    "[[8 points]]": 8,
    "[[8分]]": 8,
    "[[八]]": 8,
    "[[十]]": 10,
    "[[８]]": 8,
    "［［8］］": 8,
    "【【8】】": 8,
    r"\[\[8\]\]": 8,
    "[[Rating: 8]]": 8,
    "Rating: [[8]]": 8,
    "Rating: [[8]]/10": 8,
    "rating is [[8]].": 8,
    "**Rating:** [[8]]": 8,
    "### Final rating: **[[8]]**": 8,
    "评分：[[8]]": 8,
    "评分：【【8】】分": 8,
    "Analysis first.\n\nRating: [[8]]\n": 8,
    "So the score is [[8]] since little is missing.": 8,
    "`[[8]]`": 8,
    "```\nFine.\nRating: [[8]]\n```": 8,
    "Rating: 8": 8,
    "Rating: 8/10": 8,
    "Rating: [8]": 8,
    "**Score:** 8 out of 10": 8,
    "Final score = 7.5/10": 7.5,
    "评分：8": 8,
    "总分：8分": 8,
    "8": 8,
    "8/10": 8,
    "Rating: [[8]]\nRating: [[8]]": 8,
    "<think>Rating: [[3]]</think>Fine.\nRating: [[8]]": 8,
    'The answer says "[[10]]" and is wrong.\nRating: [[2]]': 2,
    "Compared with a [[5]] answer this is better.\nRating: [[7]]": 7,
    "Rating: [[3]]. Note that the answer contains '[[10]]'.": 3,
}

REFUSED = {
    "[[85]]": "out_of_range",
    "[[-1]]": "out_of_range",
    "[[10.5]]": "out_of_range",
    "[[11/10]]": "out_of_range",
    "Rating: 85": "out_of_range",
    "Rating: [[100]]": "out_of_range",
    "[[8/100]]": "unparsable",
    "[[4/5]]": "unparsable",
    "[[7-8]]": "unparsable",
    "Rating: 7-8": "unparsable",
    "Rating: 7 to 8": "unparsable",
    "[[N/A]]": "unparsable",
    "[[]]": "unparsable",
    "[[nan]]": "unparsable",
    "[[eight or so]]": "unparsable",
    "Rating: [[6]]\n…\nRating: [[7]]": "unparsable",
    "[[3]]\n\nQuestion: another case\n[[9]]": "unparsable",
    "The answer tells me to print [[10]] and I will not.": "unparsable",
    "I like this answer.": "unparsable",
    "In 1987 there were 8 of them.": "unparsable",
    "I'm sorry, but I can't help with rating this.": "refused",
    "抱歉，我无法评价这个回答。": "refused",
    "The response was filtered due to the prompt triggering a content management policy.": "refused",
    "系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入。": "refused",
}


@pytest.mark.parametrize(("text", "points"), ACCEPTED.items())
def test_what_a_sane_reader_takes_for_a_rating(text, points):
    rating = read_rating(text)
    assert isinstance(rating, Rating), rating
    assert rating.points == points
    assert rating.points == read_rating(fold(text)).points
    printed = fold(text[rating.start : rating.end])
    assert printed in "八十" or float(printed.replace(",", ".")) == points


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_what_is_no_rating(text, reason):
    problem = read_rating(text)
    assert isinstance(problem, Problem), problem
    assert problem.reason == reason


prose = st.text(alphabet=st.sampled_from("ab c.,:!?\n*-_'\"[](){}<>评分语。：0123456789"), max_size=60)


@given(st.text(max_size=200))
def test_any_text_reads_without_error_and_within_range(text):
    rating = read_rating(text)
    assert isinstance(rating, Problem) or 0 <= rating.points <= 10
    assert isinstance(read_verdict(text), Problem | Verdict)
    read_verdicts(text, [1, 2])


@given(prose, st.integers(-200, 200))
def test_a_rating_line_is_read_whatever_the_analysis(analysis, number):
    """No brackets in the analysis: then the last line decides, and out of range stays out of range."""
    analysis = analysis.replace("[", "(").replace("]", ")")
    result = read_rating(f"{analysis}\nRating: [[{number}]]")
    if 0 <= number <= 10:
        assert isinstance(result, Rating)
        assert result.points == number
    else:
        assert result.reason == "out_of_range"


@given(prose, st.integers(0, 10))
def test_quoted_ratings_never_count_beside_the_judges_own(quote, number):
    quote = "".join(char for char in quote if char not in '"\n')
    result = read_rating(f'The answer says "{quote} [[10]]", which is no rating.\nRating: [[{number}]]')
    assert isinstance(result, Rating)
    assert result.points == number


VERDICTS = {
    "[[Fully supported]]": "full",
    "[[Full support]]": "full",
    "[[Supported]]": "full",
    "[[supported.]]": "full",
    "[[FULLY_SUPPORTED]]": "full",
    "[[Partially supported]]": "partial",
    "[[Partial support]]": "partial",
    "[[Not fully supported]]": "partial",
    "[[is not fully supported]]": "partial",
    "[[Mostly supported]]": "partial",
    "[[No support]]": "none",
    "[[Not supported]]": "none",
    "[[Unsupported]]": "none",
    "[[Contradicted]]": "none",
    "[[Not partially supported]]": "none",
    "[[完全支持]]": "full",
    "[[支持]]": "full",
    "[[部分支持]]": "partial",
    "[[不完全支持]]": "partial",
    "[[不支持]]": "none",
    "[[没有支持]]": "none",
    "【【部分支持】】": "partial",
    "Passage 2 says so.\n[[Fully supported]]": "full",
    "Verdict: [[No support]]": "none",
    "Verdict: Partially supported": "partial",
    "结论：不支持": "none",
    "Fully supported": "full",
    "The statement is fully supported.": "full",
    'A rating of "[[Fully supported]]" would be wrong.\n[[No support]]': "none",
}


@pytest.mark.parametrize(("text", "verdict"), VERDICTS.items())
def test_verdicts(text, verdict):
    assert read_verdict(text).support == verdict


@pytest.mark.parametrize(
    "text",
    [
        "[[Maybe]]",
        "[[8]]",
        "",
        "[[Fully supported]]\n[[No support]]",
        "Verdict: [[Mostly nonsense]]",
        "It is hard to say whether it is fully supported or not.",
        "[[not sure]]",
    ],
)
def test_no_verdict(text):
    assert isinstance(read_verdict(text), Problem)


@given(st.text(max_size=30))
def test_a_negation_is_never_full_support(extra):
    for text in (f"[[Not {extra}]]", f"[[不{extra}]]"):
        verdict = read_verdict(text)
        assert isinstance(verdict, Problem) or verdict.support != "full"


def test_verdicts_are_keyed_by_statement():
    text = "S1: fine [[Fully supported]]\n**S3:** no [[No support]]\nS2: see 'S1: [[No support]]' [[Partially supported]]"
    found = read_verdicts(text, [1, 2, 3, 4])
    assert {n: v.support for n, v in found.items()} == {1: "full", 2: "partial", 3: "none"}
    doubled = read_verdicts("S1: [[Fully supported]]\nS1: [[No support]]\nS9: [[No support]]", [1])
    assert list(doubled) == [1]
    assert doubled[1].reason == "unparsable"


# ---- shapes: the same fields through text and through JSON -------------------------------------------------

words = (
    st.text(alphabet=st.sampled_from("abc dé文，.!?'"), min_size=1, max_size=40).map(str.strip).filter(bool)
)


@given(words, st.integers(0, 10), st.sets(st.integers(1, 5)), st.sampled_from(["en", "zh"]))
def test_ratings_read_the_same_from_both_protocols(analysis, rating, missed, language):
    shape = RatingShape(language, key_points=5)
    fields = {"analysis": analysis, "rating": str(rating), "missed": ", ".join(map(str, sorted(missed)))}
    text, data = (
        shape.read(Reply(text=shape.write(fields, structured=s), structured=s)) for s in (False, True)
    )
    assert isinstance(text, Rating)
    assert (text.analysis, text.points, text.missed) == (
        data.analysis,
        data.points,
        data.missed,
    )
    assert text.missed == tuple(sorted(missed))
    assert text.analysis == analysis


@given(
    st.lists(st.tuples(words, st.sampled_from(["full", "partial", "none"])), min_size=1, max_size=6),
    st.sampled_from(["en", "zh"]),
)
def test_verdicts_read_the_same_from_both_protocols(pairs, language):
    many = VerdictsShape(language, count=len(pairs))
    fields = {"analysis": "\n".join(a for a, _ in pairs), "verdict": "\n".join(v for _, v in pairs)}
    text, data = (many.read(Reply(text=many.write(fields, structured=s))) for s in (False, True))
    assert text == data == {n: Verdict(a, v) for n, (a, v) in enumerate(pairs, start=1)}
    one = VerdictShape(language)
    for analysis, verdict in pairs:
        fields = {"analysis": analysis, "verdict": verdict}
        for structured in (False, True):
            assert one.read(Reply(text=one.write(fields, structured=structured))) == Verdict(
                analysis, verdict
            )


@given(
    st.lists(words.filter(lambda word: any(char in word for char in "abcdé文")), max_size=6),
    st.sampled_from(["en", "zh"]),
)
def test_lists_read_the_same_from_both_protocols(items, language):
    shape = ListShape(language)
    fields = {"statements": "\n".join(items)}
    for structured in (False, True):
        assert shape.read(Reply(text=shape.write(fields, structured=structured))) == Items(tuple(items))


def test_joint_ratings_read_the_same_from_both_protocols():
    shape = JointShape()
    fields = {
        "helpfulness analysis": "Good.",
        "helpfulness rating": "9",
        "logicality analysis": "One error.",
        "logicality rating": "4",
    }
    for structured in (False, True):
        read = shape.read(Reply(text=shape.write(fields, structured=structured)))
        assert {name: (one.analysis, one.points) for name, one in read.items()} == {
            "helpfulness": ("Good.", 9),
            "logicality": ("One error.", 4),
        }


def test_one_unreadable_part_of_a_joint_reply_leaves_the_other():
    read = JointShape().read(
        Reply(text="## helpfulness\nGood.\nRating: [[9]]\n\n## logicality\nRating: [[85]]")
    )
    assert read["helpfulness"].points == 9
    assert read["logicality"].reason == "out_of_range"


@pytest.mark.parametrize("structured", [True, False])
def test_reading_does_not_trust_the_mode(structured):
    shape = RatingShape()
    assert shape.read(Reply(text='{"analysis": "a", "rating": 7}', structured=structured)).points == 7
    assert shape.read(Reply(text="a\nRating: [[7]]", structured=structured)).points == 7
    assert shape.read(Reply(text='```json\n{"analysis": "a", "rating": "7/10"}\n```')).points == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"analysis": "a"}', "unparsable"),
        ('{"analysis": "a", "rating": true}', "unparsable"),
        ('{"analysis": "a", "rating": null}', "unparsable"),
        ('{"analysis": "a", "rating": [7]}', "unparsable"),
        ('{"analysis": "a", "rating": 85}', "out_of_range"),
        ('{"analysis": "a", "rating": NaN}', "out_of_range"),
        ('{"analysis": "a", "rating": 3, "rating": 10}', "unparsable"),
        ('{"analysis": "a", "rating": 7', "unparsable"),
        ("[7]", "unparsable"),
    ],
)
def test_wrong_json_is_typed(text, reason):
    assert RatingShape().read(Reply(text=text, structured=True)).reason == reason


def test_truncation_is_seen_and_a_closed_object_is_whole():
    shape = RatingShape()
    assert shape.read(Reply(text="Fine.\nRating: [[8]]", finish_reason="length")).reason == "truncated"
    assert shape.read(Reply(text='{"analysis": "a", "rat', finish_reason="length")).reason == "truncated"
    endless = '{"analysis": "a", "rating": 8}' + "\n \t" * 500
    assert shape.read(Reply(text=endless, finish_reason="length")).points == 8
    assert shape.read(Reply(text="   \n", finish_reason="length")).reason == "truncated"
    assert shape.read(Reply(text="<think>hm</think>")).reason == "empty_reply"
    assert shape.read(Reply(text="Rating: [[8]]", finish_reason="content_filter")).reason == "refused"
    assert shape.read(Reply(failure="timeout", detail="60 s")).reason == "timeout"


def test_thinking_may_hold_a_draft_of_every_part():
    draft = "<think>\n## helpfulness\nRating: [[1]]\n## logicality\nRating: [[2]]\n</think>\n"
    parts = (
        draft,
        "## helpfulness\nGood.\nRating: [[",
        ("9", {"9": 0.5, "8": 0.5}),
        "]]\n\n## logicality\nBad.\nRating: [[4]]",
    )
    logprobs = tokens(*parts)
    read = JointShape().read(Reply(text="".join(token.token for token in logprobs), logprobs=logprobs))
    assert {name: (one.analysis, one.points) for name, one in read.items()} == {
        "helpfulness": ("Good.", 9),
        "logicality": ("Bad.", 4),
    }
    assert read["helpfulness"].expectation.points == pytest.approx(8.5)


def test_list_items_and_their_bounds():
    shape = ListShape(limit=2)
    assert shape.read(Reply(text="1. one\n2) two\n- three")) == Items(("one", "two"), dropped=1, capped=True)
    full = json.dumps({"statements": ["one", "two"]})
    assert shape.read(Reply(text=full, structured=True)) == Items(("one", "two"), capped=True)
    assert shape.read(Reply(text=full)) == Items(("one", "two"))
    for count in (60, 100, 101, 400):
        many = json.dumps({"statements": [f"x{n}" for n in range(count)]})
        assert len(ListShape().read(Reply(text=many, structured=True)).texts) == count
    assert ListShape().read(Reply(text="Here are the statements:\n- one\n  goes on\n\n• two")).texts == (
        "one goes on",
        "two",
    )
    assert ListShape().read(Reply(text="NONE")).texts == ()
    assert ListShape().read(Reply(text="无。")).texts == ()
    assert ListShape().read(Reply(text="There is a lot to say.")).reason == "unparsable"
    assert ListShape().read(Reply(text='{"statements": "one"}')).reason == "unparsable"


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("- 3.5 million people came.", ["3.5 million people came."]),
        ("1. 3.5 million people came.\n2. It rained.", ["3.5 million people came.", "It rained."]),
        ("**Facts:**\n- One.\n---\n- Two.", ["One.", "Two."]),
        ("* One.\n* **Two** is bold.", ["One.", "**Two** is bold."]),
        ("S1: One.\nS2：Two.", ["One.", "Two."]),
        ("1、灯塔建成。\n2、港口淤塞。", ["灯塔建成。", "港口淤塞。"]),
        ("- One.\n- NONE\n- Two.", ["One.", "Two."]),
    ],
)
def test_list_items_keep_their_own_numbers(text, items):
    assert list(ListShape().read(Reply(text=text)).texts) == items


@pytest.mark.parametrize(
    "text",
    ["3.5 million people came.", "12:30 was the time.", "-5 degrees was the minimum.", "**Heading**", "---"],
)
def test_what_is_no_list_item(text):
    assert ListShape().read(Reply(text=text)).reason == "unparsable"


def test_schemas_are_bounded_and_closed():
    for shape in (
        RatingShape(key_points=3),
        JointShape(),
        VerdictShape(),
        VerdictsShape(count=6),
        ListShape(),
        ListShape(limit=9),
    ):
        _bounded(shape.schema())


@pytest.mark.parametrize("count", [3, 60, 61, 100, 400])
def test_all_key_points_can_be_named_as_missed(count):
    shape = RatingShape(key_points=count)
    missed = list(range(1, count + 1))
    assert shape.schema()["properties"]["missed"]["maxItems"] == count
    for text in (
        json.dumps({"analysis": "a", "missed": missed, "rating": 0}),
        f"a\nMissed: {', '.join(f'K{n}' for n in missed)}\nRating: [[0]]",
    ):
        assert shape.read(Reply(text=text)).missed == tuple(missed)


SMALL = {"analysis_chars": 80, "item_chars": 80}  # long bounds take long to compile
SHAPES = [
    RatingShape(**SMALL, key_points=3),
    JointShape(**SMALL),
    VerdictShape("zh", **SMALL),
    VerdictsShape(**SMALL, count=6),
    ListShape(**SMALL),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_schemas_hold_a_real_grammar(shape):
    """xgrammar takes every schema, lets through what we write as examples, and nothing out of range."""
    import xgrammar
    from transformers import AutoTokenizer

    from judge_pipeline.common.bundled_models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("minilm"))
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=[tokenizer.sep_token_id])
    compiler = xgrammar.GrammarCompiler(info)
    compiled = compiler.compile_json_schema(json.dumps(shape.schema()), any_whitespace=False)
    fields = {
        "analysis": "\n".join(["One after another."] * getattr(shape, "count", 1)),
        "verdict": "\n".join(["partial"] * getattr(shape, "count", 1)),
        "rating": "7",
        "missed": "1, 3",
        "statements": "One.\nTwo.",
        "helpfulness analysis": "a",
        "helpfulness rating": "7",
        "logicality analysis": "b",
        "logicality rating": "10",
    }
    if not isinstance(shape, RatingShape):
        del fields["missed"]
    written = shape.write(fields, structured=True)
    assert xgrammar.GrammarMatcher(compiled).accept_string(written), written
    if '"rating": 7' in written:
        assert not xgrammar.GrammarMatcher(compiled).accept_string(
            written.replace('"rating": 7', '"rating": 11')
        )


def _bounded(node):
    if node.get("type") == "object":
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])
        for child in node["properties"].values():
            _bounded(child)
    elif node.get("type") == "array":
        # How many statements or key points a text holds nobody knows: the reply's own length is their bound.
        assert node.get("maxItems", 0) <= 100
        _bounded(node["items"])
    elif "enum" not in node and node["type"] == "string":
        assert node["maxLength"] <= 1500
    else:
        assert "enum" in node or (node["type"] == "integer" and "maximum" in node)


# ---- expected scores ---------------------------------------------------------------------------------------


def expected(text, logprobs):
    rating = read_rating(text)
    return expected_rating(text, rating.points, (rating.start, rating.end), logprobs)


def expect(*parts):
    logprobs = tokens(*parts)
    return expected("".join(token.token for token in logprobs), logprobs)


def test_the_expectation_over_single_tokens():
    found = expect("Fine.\nRating: [[", ("8", {"8": 0.6, "6": 0.2, "7": 0.2}), "]]")
    assert found.points == pytest.approx(0.6 * 8 + 0.2 * 6 + 0.2 * 7)
    assert found.mass == pytest.approx(1)


def test_ten_as_one_token_or_two():
    one = expect("Rating: [[", ("10", {"10": 0.5, "9": 0.5}), "]]")
    assert one.points == pytest.approx(9.5)
    two = expect("Rating: [[", ("1", {"1": 0.8, "9": 0.2}), ("0", {"0": 0.75, "]]": 0.25}), "]]")
    assert two.points == pytest.approx(0.6 * 10 + 0.2 * 1 + 0.2 * 9)
    alone = expect("Rating: [[", ("1", {"1": 1.0}), ("]]", {"]]": 0.9, "0": 0.1}))
    assert alone.points == pytest.approx(0.9 * 1 + 0.1 * 10)


def test_what_is_no_rating_is_renormalised_away():
    found = expect("Rating: [[", ("8", {"8": 0.5, "6": 0.25, "eight": 0.1, "85": 0.05, " ": 0.1}), "]]")
    assert found.points == pytest.approx((0.5 * 8 + 0.25 * 6) / 0.75)
    assert found.mass == pytest.approx(0.75)
    # An alternative "1" might have become 10: it is left out, too.
    found = expect("Rating: [[", ("8", {"8": 0.5, "1": 0.3, "6": 0.2}), "]]")
    assert found.points == pytest.approx((0.5 * 8 + 0.2 * 6) / 0.7)


def test_tokens_that_hold_more_than_the_number():
    found = expect("Rating:", (" [[8", {" [[8": 0.5, " [[7": 0.5}), "]]")
    assert found.points == pytest.approx(7.5)
    found = expect("Rating", (": 8", {": 8": 0.5, ": 6": 0.4, " 5": 0.1}))
    assert found.points == pytest.approx((4 + 2.4) / 0.9)
    found = expect("Rating: [[", ("8]]", {"8]]": 0.5, "7": 0.5}))
    assert found.points == pytest.approx(7.5)


def test_a_fraction_stays_on_its_branch():
    found = expect("Rating: [[", ("8", {"8": 0.5, "7": 0.5}), ".5", "]]")
    assert found.points == pytest.approx(0.5 * 8.5 + 0.5 * 7)


def test_json_replies_and_several_ratings():
    parts = ['{"analysis": "an \\"rating\\": 3 in it", "rating": ', ("8", {"8": 0.5, "6": 0.5}), "}"]
    logprobs = tokens(*parts)
    reply = Reply(text="".join(t.token for t in logprobs), logprobs=logprobs, structured=True)
    read = RatingShape().read(reply)
    assert (read.points, read.expectation.points) == (8, 7)
    parts = [
        '{"helpfulness": {"analysis": "a", "rating": ',
        ("8", {"8": 0.5, "6": 0.5}),
        '}, "logicality": {"analysis": "b", "rating": ',
        ("3", {"3": 0.5, "5": 0.5}),
        "}}",
    ]
    logprobs = tokens(*parts)
    reply = Reply(text="".join(t.token for t in logprobs), logprobs=logprobs)
    joint = JointShape().read(reply)
    assert (joint["helpfulness"].expectation.points, joint["logicality"].expectation.points) == (7, 4)
    text = [
        "## helpfulness\na\nRating: [[",
        ("8", {"8": 0.5, "6": 0.5}),
        "]]\n\n## logicality\nb\nRating: [[",
        ("3", {"3": 0.5, "5": 0.5}),
        "]]",
    ]
    logprobs = tokens(*text)
    joint = JointShape().read(Reply(text="".join(t.token for t in logprobs), logprobs=logprobs))
    assert (joint["helpfulness"].expectation.points, joint["logicality"].expectation.points) == (7, 4)


def test_no_expectation_without_something_to_go_by():
    assert expected("Rating: [[8]]", None) is None
    assert expected("Rating: [[8]]", tokens("other", " text")) is None
    assert expect("Rating: [[", ("8", {"8": 0.2, "x": 0.8}), "]]") is None


def test_a_stripped_reasoning_block_is_aligned():
    logprobs = tokens("<think>[[3]]</think>\n", "Rating: [[", ("8", {"8": 0.5, "7": 0.5}), "]]", "\n")
    text = "Rating: [[8]]"
    assert expected(text, logprobs).points == pytest.approx(7.5)


def test_tokens_that_hold_half_a_character_do_not_hide_the_rating():
    """Byte-level tokenizers split Chinese characters: engines then report replacement marks."""
    text = "这个回答很好。\n评分: [[8]]"
    parts = [
        "这个",
        "\ufffd",
        "\ufffd",
        "\ufffd",
        "答很好。\n评",
        "分: [[",
        ("8", {"8": 0.5, "7": 0.5}),
        "]]",
    ]
    assert expected(text, tokens(*parts)).points == pytest.approx(7.5)
    joint = "## helpfulness\n好。\n评分: [[8]]\n\n## logicality\n好。\n评分: [[8]]"
    head = "\n\ufffd\ufffd。\n评分: [["
    first, second = ("8", {"8": 0.5, "7": 0.5}), ("8", {"8": 0.5, "6": 0.5})
    logprobs = tokens("## helpfulness", head, first, "]]\n\n## logicality", head, second, "]]")
    read = JointShape("zh").read(Reply(text=joint, logprobs=logprobs))
    assert read["helpfulness"].expectation.points == pytest.approx(7.5)
    assert read["logicality"].expectation.points == pytest.approx(7)


@pytest.mark.parametrize(("one", "zero"), [("1", "0"), ("１", "０")])
def test_a_ten_of_two_tokens_is_a_ten_in_either_width(one, zero):
    found = expect("评分: [[", (one, {one: 0.9, "8": 0.1}), zero, "]]")
    assert found.points == pytest.approx(9.8)


@given(st.dictionaries(st.integers(0, 10), st.floats(0.01, 1), min_size=1))
def test_the_expectation_equals_the_definition(weights):
    total = sum(weights.values())
    chances = {str(n): w / total for n, w in weights.items()}
    printed = random.Random(0).choice(sorted(chances))
    if printed == "1":
        chances = {n: c for n, c in chances.items() if n != "10"}
    found = expect("Rating: [[", (printed, chances), "]]")
    kept = {int(n): c for n, c in chances.items() if n != "1" or printed == "1"}
    mass = sum(kept.values())
    if mass < 0.5:
        assert found is None
    else:
        assert found.points == pytest.approx(sum(n * c for n, c in kept.items()) / mass)


def test_marks_know_their_place():
    marks = find_marks(
        fold('x [[1]] y\n"[[2]]" z\nRating: [[3]]\n[[4]]'),
        label_pattern("rating|score"),
    )
    assert [(m.inner, m.labelled, m.placed, m.quoted) for m in marks] == [
        ("1", False, False, False),
        ("2", False, False, True),
        ("3", True, True, False),
        ("4", False, True, False),
    ]


def test_both_languages_name_all_verdicts():
    assert all(set(words) == {"full", "partial", "none"} for words in VERDICT_WORDS.values())
