"""Verdicts by their expected value, as ratings have one."""

import json

import pytest
from judging import PlainDocument, RuleJudge, drive, inside, tokens

from judge_pipeline.calls.call import Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.replies.verdicts import VerdictShape, VerdictsShape

HESITANT = ("Part", {"Part": 0.5, "F": 0.3, "No": 0.2})


def reply(*parts, structured=False):
    logprobs = tokens(*parts)
    return Reply(text="".join(one.token for one in logprobs), logprobs=logprobs, structured=structured)


@pytest.mark.parametrize(
    ("parts", "points", "mass"),
    [
        (("P1 says so.\n[[", HESITANT, "ially supported]]"), 0.55, 1),
        (("P1.\n", ("[[Part", {"[[Part": 0.6, "[[Fully": 0.4}), "ially supported]]"), 0.7, 1),
        (("P1.\nVerdict: ", ("No", {"No": 0.75, "Fully": 0.25}), " support"), 0.25, 1),
        # Whatever words the judge has for it: what it printed is what it printed.
        (("[[", ("Supp", {"Supp": 0.5, "No": 0.25, "Un": 0.25}), "orted]]"), 0.5 / 0.75, 0.75),
        (("[[", ("Not", {"Not": 0.5, "Fully": 0.5}), " fully supported]]"), 0.75, 1),
        (("<think>[[No support]]</think>P1.\n[[", HESITANT, "ially supported]]"), 0.55, 1),
        (('{"analysis": "P1.", "verdict":', (' "Part', {' "Part': 0.5, ' "No': 0.5}), 'ially supported"}'), 0.25, 1),
    ],
)  # fmt: skip
def test_the_expected_verdict(parts, points, mass):
    read = VerdictShape().read(reply(*parts))
    assert read.expectation.points == pytest.approx(points)
    assert read.expectation.mass == pytest.approx(mass)


def test_chinese_verdicts_have_one_too():
    read = VerdictShape("zh").read(
        reply("P1。\n[[", ("部分", {"部分": 0.5, "完全": 0.4, "不": 0.1}), "支持]]")
    )
    assert read.expectation.points == pytest.approx(0.65)


@pytest.mark.parametrize(
    "parts",
    [("[[", ("Fully", {"Fully": 0.3, "The": 0.7}), " supported]]"), ("[[F", "\ufffd", "lly supported]]")],
)
def test_tokens_that_tell_no_verdict_leave_the_printed_one(parts):
    logprobs = tokens(*parts)
    read = VerdictShape().read(Reply(text="[[Fully supported]]", logprobs=logprobs))
    assert (read.support, read.expectation) == ("full", None)
    assert VerdictShape().read(Reply(text="[[Fully supported]]")).expectation is None


def test_each_of_several_statements_has_its_own():
    sure = ("Fully", {"Fully": 0.9, "Part": 0.1})
    read = VerdictsShape(count=2).read(
        reply("S1: P1. [[", HESITANT, "ially supported]]\nS2: P2. [[", sure, " supported]]")
    )
    assert [read[n].expectation.points for n in (1, 2)] == pytest.approx([0.55, 0.95])
    one, two = (
        '{"S1": {"analysis": "a", "verdict": "',
        'ially supported"}, "S2": {"analysis": "b", "verdict": "',
    )
    read = VerdictsShape(count=2).read(reply(one, HESITANT, two, sure, ' supported"}}', structured=True))
    assert [read[n].expectation.points for n in (1, 2)] == pytest.approx([0.55, 0.95])
    swapped = {f"S{n}": {"analysis": "a", "verdict": "Fully supported"} for n in (2, 1)}
    logprobs = tokens(json.dumps(swapped))
    read = VerdictsShape(count=2).read(Reply(text=json.dumps(swapped), logprobs=logprobs))
    assert [read[n].expectation for n in (1, 2)] == [None, None]


class Hesitant(RuleJudge):
    """Prints "partial" half-heartedly, and says with which probability; `silent` statements come without."""

    def __init__(self, silent=()):
        super().__init__(verdict="partial")
        self.silent = silent

    def __call__(self, call):
        if not call.template.endswith(".verify") or inside(call, "statement") in self.silent:
            return super().__call__(call)
        return reply("P1.\n[[", HESITANT, "ially supported]]")


def run(judge, **options):
    one = Prompt(
        id="p", context="A fact. " * 40, query="q?", responses=[{"id": "a", "text": "One fact. Two."}]
    )
    return drive(
        build_dimensions(["faithfulness"], JudgeOptions(**options)), one, PlainDocument(one.context), judge
    )


def test_faithfulness_by_expected_verdicts():
    done = run(Hesitant(), score="expected")
    assert done.outcomes[0].score == pytest.approx(5.5)
    rows = done.outcomes[0].evidence["statements"]
    assert [(row["verdict"], row["support"]) for row in rows] == [("partial", 0.55)] * 2
    assert done.outcomes[0].evidence["votes"] == [pytest.approx(5.5)]
    assert {c.sampling.logprobs for c in done.calls if c.template.endswith(".verify")} == {20}
    printed = run(Hesitant())
    assert printed.outcomes[0].score == 5
    assert "support" not in printed.outcomes[0].evidence["statements"][0]
    assert {c.sampling.logprobs for c in printed.calls} == {0}


def test_a_verdict_without_probabilities_counts_as_printed_and_is_noted():
    outcome = run(Hesitant(silent=["Two."]), score="expected").outcomes[0]
    assert outcome.score == pytest.approx(10 * (0.55 + 0.5) / 2)
    assert outcome.evidence["fallback"] == "1 of 2 printed: no usable log-probabilities at the verdict"
