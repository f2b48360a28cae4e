import math
import sys

import pytest
from judging import PlainDocument, RuleJudge, drive, inside
from pydantic import ValidationError

from judge_pipeline.calls.call import Reply, TokenLogprob
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import REGISTRY, SETS, build_dimensions, expand


def prompt(*texts, query="When?"):
    responses = [
        {"id": str(i), "text": text, "flags": [] if text.strip() else ["empty"]}
        for i, text in enumerate(texts)
    ]
    return Prompt(id="p", context="Built in 1887. It burned oil.", query=query, responses=responses)


def run(names, one, judge, **options):
    return drive(build_dimensions(names, JudgeOptions(**options)), one, PlainDocument(one.context), judge)


def test_a_rating_and_its_evidence():
    one = prompt("In 1887.", "In 1911.")
    done = run(
        ["helpfulness"],
        one,
        lambda call: (
            f"About {inside(call, 'answer')}\nRating: [[{8 if '1887' in inside(call, 'answer') else 3}]]"
        ),
    )
    assert [o.score for o in done.outcomes] == [8, 3]
    assert done.outcomes[0].evidence == {"analysis": "About In 1887.", "votes": [8], "spread": None}
    assert done.rounds == 1
    assert {call.sampling.temperature for call in done.calls} == {0}


def test_helpfulness_and_logicality_do_not_see_the_document():
    one = prompt("In 1887.")
    done = run(["helpfulness", "logicality"], one, RuleJudge())
    assert not any("burned oil" in message.content for call in done.calls for message in call.messages)


def test_equal_answers_are_one_call():
    done = run(["helpfulness"], prompt("Same.", "Same.", "Other."), RuleJudge())
    assert len(done.calls) == 2
    assert [o.score for o in done.outcomes] == [7, 7, 7]


def test_votes_are_averaged_and_their_spread_kept():
    ratings = iter([6, 8, 10])
    done = run(
        ["helpfulness"], prompt("In 1887."), lambda call: f"A.\nRating: [[{next(ratings)}]]", votes=3, seed=40
    )
    assert done.outcomes[0].score == 8
    assert done.outcomes[0].evidence["votes"] == [6, 8, 10]
    assert done.outcomes[0].evidence["spread"] == pytest.approx(2.0)
    assert [(c.sampling.sample, c.sampling.temperature, c.sampling.seed) for c in done.calls] == [
        (0, 1, 40),
        (1, 1, 41),
        (2, 1, 42),
    ]


def test_a_lost_vote_is_recorded_and_most_votes_lost_is_a_failure():
    def judge_failing(samples):
        return lambda call: (
            Reply(failure="timeout") if call.sampling.sample in samples else "A.\nRating: [[6]]"
        )

    done = run(["helpfulness"], prompt("In 1887."), judge_failing({1}), votes=3)
    assert done.outcomes[0].score == 6
    assert done.outcomes[0].evidence["failed_votes"] == ["timeout"]
    done = run(["helpfulness"], prompt("In 1887."), judge_failing({0, 1}), votes=3)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (None, "timeout")


@pytest.mark.parametrize("first", ["No idea.", "Rating: [[85]]", "", "Rating: [[3]]\nRating: [[9]]"])
def test_an_unreadable_reply_is_asked_again_once(first):
    replies = iter([first, "A.\nRating: [[6]]"])
    done = run(["helpfulness"], prompt("In 1887."), lambda call: next(replies))
    assert done.outcomes[0].score == 6
    first_call, second = done.calls
    assert second.sampling.sample == 1
    assert second.sampling.temperature > 0
    assert first_call.messages == second.messages
    assert first_call.key("m") != second.key("m")


@pytest.mark.parametrize(
    ("reply", "reason", "calls"),
    [
        ("No idea.", "unparsable", 2),
        ("Rating: [[85]]", "out_of_range", 2),
        ("", "empty_reply", 2),
        (Reply(text="A. Rating: [[8", finish_reason="length"), "truncated", 1),
        (Reply(text="x", finish_reason="content_filter"), "refused", 1),
        ("I'm sorry, but I cannot assist with that.", "refused", 1),
        (Reply(failure="http", detail="500"), "http", 1),
        (Reply(failure="context_too_long"), "context_too_long", 1),
        (Reply(failure="stopped"), "stopped", 1),
    ],
)
def test_failures_are_typed_and_never_a_zero(reply, reason, calls):
    done = run(["helpfulness"], prompt("In 1887."), lambda call: reply)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (None, reason)
    assert len(done.calls) == calls


def test_an_empty_answer_fails_without_a_call():
    done = run(["paper"], prompt("", "   "), RuleJudge())
    assert {o.reason for o in done.outcomes} == {"empty_answer"}
    assert done.calls == []
    mixed = run(["paper"], prompt("", "In 1887."), RuleJudge())
    assert [o.reason for o in mixed.outcomes] == ["empty_answer", None] * 4


def logprobs(text, at, chances):
    head, tail = text[:at], text[at + 1 :]
    top = {token: math.log(chance) for token, chance in chances.items()}
    return [
        TokenLogprob(token=head, logprob=0),
        TokenLogprob(token=text[at], logprob=top[text[at]], top=top),
        TokenLogprob(token=tail, logprob=0),
    ]


def test_expected_scores_and_their_fallback():
    text = "A.\nRating: [[8]]"
    with_logprobs = Reply(text=text, logprobs=logprobs(text, text.index("8"), {"8": 0.5, "6": 0.5}))
    done = run(["helpfulness"], prompt("In 1887."), lambda call: with_logprobs, score="expected")
    assert done.outcomes[0].score == pytest.approx(7)
    assert done.outcomes[0].evidence["printed"] == [8]
    assert "fallback" not in done.outcomes[0].evidence
    assert done.calls[0].sampling.logprobs == 20
    done = run(["helpfulness"], prompt("In 1887."), lambda call: text, score="expected")
    assert done.outcomes[0].score == 8
    assert "no usable log-probabilities" in done.outcomes[0].evidence["fallback"]
    done = run(["helpfulness"], prompt("In 1887."), lambda call: with_logprobs)
    assert done.outcomes[0].score == 8
    assert done.calls[0].sampling.logprobs == 0


def test_joint_ratings_share_their_calls():
    apart = run(["helpfulness", "logicality"], prompt("In 1887.", "Then."), RuleJudge())
    joint = run(["helpfulness", "logicality"], prompt("In 1887.", "Then."), RuleJudge(), joint_ratings=True)
    assert (len(apart.calls), len(joint.calls)) == (4, 2)
    assert [o.score for o in apart.outcomes] == [o.score for o in joint.outcomes]
    alone = run(["helpfulness"], prompt("In 1887."), RuleJudge(), joint_ratings=True)
    assert alone.calls[0].template == "helpfulness.rate"


def test_both_protocols_give_the_same_scores():
    one = prompt("Built in 1887.", "It burned coal. Nobody knows.")
    results = []
    for structured in (False, True):
        done = run(["paper"], one, RuleJudge(rating=4, verdict="partial"), structured=structured)
        assert all((call.json_schema is not None) == structured for call in done.calls)
        results.append([(o.score, o.evidence) for o in done.outcomes])
    assert results[0] == results[1]


# ---- the registry ------------------------------------------------------------------------------------------

BREVITY = '''
from pathlib import Path
from judge_pipeline.dimensions.rating import RatingDimension

class Brevity(RatingDimension):
    """Says it in as few words as it takes."""

    def __init__(self, options):
        super().__init__("brevity", options, prompts=Path(__file__).parent / "prompts")
'''


def test_a_fifth_dimension_is_one_file_and_one_prompt(tmp_path, monkeypatch):
    """As the registry's docstring tells the reader to do it."""
    from judge_pipeline.prompts.templates import PROMPTS

    (tmp_path / "my_dimension.py").write_text(BREVITY)
    (tmp_path / "prompts" / "en").mkdir(parents=True)
    text = (PROMPTS / "en" / "helpfulness.rate.txt").read_text().replace("how helpful", "how short")
    (tmp_path / "prompts" / "en" / "brevity.rate.txt").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    one = prompt("In 1887.")
    done = run(["paper", "my_dimension:Brevity"], one, RuleJudge(rating=9))
    assert done.outcomes[-1].score == 9
    brevity = done.calls[-1]
    assert brevity.template == "brevity.rate"
    assert "how short" in brevity.messages[0].content
    # A Chinese document falls back to the only prompt there is, examples included.
    chinese = Prompt(
        id="p", context="灯塔由莫英设计。" * 9, query="谁？", responses=[{"id": "a", "text": "莫英。"}]
    )
    done = run(["my_dimension:Brevity"], chinese, RuleJudge(rating=9))
    assert "Rating: [[" in done.calls[0].messages[1].content
    sys.modules.pop("my_dimension")


def test_names_and_sets():
    assert expand(["paper"]) == ["helpfulness", "logicality", "faithfulness", "completeness"]
    assert expand(["completeness", "paper"])[0] == "completeness"
    assert [d.name for d in build_dimensions(["trajectory"], JudgeOptions())] == list(SETS["trajectory"])
    assert set(REGISTRY) == {name for members in SETS.values() for name in members}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["helpfullness"], "did you mean 'helpfulness'"),
        (["nothing-like-it-at-all"], "known are"),
        ([], "no dimension"),
        (["no_such_module:Thing"], "cannot import"),
        (["judge_pipeline.common.records:Missing"], "cannot import"),
        (["judge_pipeline.common.records:Prompt"], "no method plan"),
        (["faithfulness", "judge_pipeline.dimensions.faithfulness:Faithfulness"], "two dimensions"),
    ],
)
def test_wrong_names_say_what_to_do(names, says):
    with pytest.raises(UserError) as error:
        build_dimensions(names, JudgeOptions())
    assert says in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"statements_per_call": 7},
        {"statements_per_call": 0},
        {"no_statements": 11},
        {"no_statements": "half"},
        {"votes": 0},
        {"unknown": 1},
    ],
)
def test_options_outside_their_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        JudgeOptions(**wrong)


def test_rules_come_from_flags_and_from_yaml():
    assert JudgeOptions(no_statements="5").no_statements == JudgeOptions(no_statements=5).no_statements == "5"
    assert JudgeOptions(no_statements=None).no_statements == "null"
    assert JudgeOptions(no_key_points="ask", no_statements="7.5").no_statements == "7.5"
    with pytest.raises(ValidationError):
        JudgeOptions(no_statements="ask")
