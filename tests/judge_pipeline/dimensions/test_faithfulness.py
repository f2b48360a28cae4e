import json

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from judging import PlainDocument, RuleJudge, case_of, drive, inside

from judge_pipeline.calls.call import Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.faithfulness import Claim, group
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.chunking import Span

WORDS = {"yes": "Fully supported", "half": "Partially supported", "no": "No support"}


class TruthJudge(RuleJudge):
    """Verdict by a word in the statement: yes, half or no. `skip` statements are passed over in a batch."""

    def __init__(self, skip=()):
        super().__init__()
        self.skip = skip

    def verdict_for(self, statement):
        return next(word for key, word in WORDS.items() if key in statement.casefold().split())

    def __call__(self, call):
        kind = call.template.split(".")[-1]
        if kind == "verify":
            return f"Seen.\n[[{self.verdict_for(inside(call, 'statement').rstrip('.'))}]]"
        if kind == "verify_many":
            lines = inside(call, "statements").splitlines()
            return "\n".join(
                f"{line.split(':')[0]}: Seen. [[{self.verdict_for(line.rstrip('.'))}]]"
                for line in lines
                if not any(word in line for word in self.skip)
            )
        return super().__call__(call)


def prompt(*texts, context="A yes document. " * 40):
    return Prompt(
        id="p",
        context=context,
        query="q?",
        responses=[{"id": str(i), "text": t} for i, t in enumerate(texts)],
    )


def run(one, judge, **options):
    evidence = PlainDocument(one.context)
    done = drive(build_dimensions(["faithfulness"], JudgeOptions(**options)), one, evidence, judge)
    return done, evidence


def test_the_score_is_ten_times_the_mean_support():
    done, _ = run(prompt("A yes. B half. C no. D yes."), TruthJudge())
    assert done.outcomes[0].score == pytest.approx(10 * (1 + 0.5 + 0 + 1) / 4)
    rows = done.outcomes[0].evidence["statements"]
    assert [(row["text"], row["verdict"]) for row in rows] == [
        ("A yes.", "full"),
        ("B half.", "partial"),
        ("C no.", "none"),
        ("D yes.", "full"),
    ]
    assert all(
        row["analysis"] == "Seen." and row["failure"] is None and len(row["spans"]) == 5 for row in rows
    )
    assert set(rows[0]) == {"id", "text", "verdict", "analysis", "failure", "spans"}


def test_spans_are_citations_and_passages_stand_in_document_order():
    context = "".join(f"Line {n} says something of its own here. " for n in range(60))
    one = prompt("Line 41 says yes", context=context)
    done, _ = run(one, TruthJudge())
    spans = done.outcomes[0].evidence["statements"][0]["spans"]
    passages = regex.sub(r"\n<P\d-\w{6}>\n", " ", inside(done.calls[-1], "passages"))
    places = sorted((span["start"], span["end"]) for span in spans)
    found = [passages.index(context[start:end].strip()) for start, end in places]
    assert found == sorted(found)
    assert [span["score"] for span in spans] == sorted((s["score"] for s in spans), reverse=True)


def test_passages_are_told_apart_from_numbers_of_the_document_and_end_with_a_sentence():
    context = "".join(
        f"({n}) Item {n} says yes and ends here. <P{n}-1a2b3c> S{n}: see (3). " for n in range(1, 30)
    )
    done, _ = run(prompt("Item 7 says yes", context=context), TruthJudge())
    shown = inside(done.calls[-1], "passages")
    nonce = regex.match(r"<P1-([0-9a-f]{6})>\n", shown)[1]
    assert nonce not in context
    marks = regex.findall(rf"^<P(\d+)-{nonce}>$", shown, regex.MULTILINE)
    assert marks == [str(n) for n in range(1, len(marks) + 1)]
    for passage in regex.split(rf"\n?<P\d+-{nonce}>\n", shown)[1:]:
        assert passage.startswith("(")
        assert passage.endswith("(3).")
    assert case_of(done.calls[-1]).count(nonce) == len(marks)


def test_a_statement_of_several_answers_is_verified_once():
    one = prompt("Shared yes. Own half.", "Shared \n yes. Other no.", "Shared yes. Shared yes.")
    done, evidence = run(one, TruthJudge())
    assert done.count("faithfulness.verify") == 3
    assert evidence.searches == [["Shared yes.", "Own half.", "Other no."]]  # one embedding request a prompt
    assert [o.score for o in done.outcomes] == [7.5, 5, 10]
    ids = [[row["id"] for row in o.evidence["statements"]] for o in done.outcomes]
    assert ids == [[1, 2], [1, 3], [1]]


def test_prompts_over_one_document_share_verification():
    context = "A yes document. " * 40
    calls = set()
    for name, query in (("a", "first question?"), ("b", "second question?")):
        one = Prompt(id=name, context=context, query=query, responses=[{"id": "x", "text": "Shared yes."}])
        done, _ = run(one, TruthJudge())
        calls |= {call.key("m") for call in done.calls if call.template.endswith("verify")}
    assert len(calls) == 1


@pytest.mark.parametrize("size", [2, 3, 6])
def test_batches_give_the_scores_of_single_calls(size):
    one = prompt("A yes. B half. C no.", "D yes. A yes. E half. F no. G yes.", "H no.")
    alone, _ = run(one, TruthJudge())
    batched, _ = run(one, TruthJudge(), statements_per_call=size)
    assert [o.score for o in alone.outcomes] == [o.score for o in batched.outcomes]
    assert batched.count("faithfulness.verify_many") == -(-8 // size)
    assert batched.count("faithfulness.verify") == 0


def test_a_verdict_missing_from_a_batch_is_asked_for_alone():
    one = prompt("A yes. B half. C no.")
    done, _ = run(one, TruthJudge(skip=["B half"]), statements_per_call=6)
    assert done.count("faithfulness.verify_many") == 1
    assert done.count("faithfulness.verify") == 1
    assert inside(done.calls[-1], "statement") == "B half."
    assert done.outcomes[0].score == pytest.approx(5)


def test_a_verdict_that_stays_missing_is_a_failure_and_no_support_is_invented():
    class Silent(TruthJudge):
        def __call__(self, call):
            return "I would rather not say." if call.template.endswith(".verify") else super().__call__(call)

    done, _ = run(prompt("A yes. B half. C no.", "A yes."), Silent(skip=["B half"]), statements_per_call=6)
    failed, fine = done.outcomes
    assert (failed.score, failed.reason) == (None, "missing_verdict")
    rows = failed.evidence["statements"]
    assert [(row["verdict"], row["failure"]) for row in rows] == [
        ("full", None),
        (None, "missing_verdict"),
        ("none", None),
    ]
    assert fine.score == 10


@pytest.mark.parametrize("reason", ["refused", "truncated", "context_too_long", "unparsable"])
def test_a_batch_that_fails_is_taken_apart(reason):
    class Failing(TruthJudge):
        def __call__(self, call):
            if call.template.endswith("verify_many"):
                return Reply(failure=reason) if reason != "unparsable" else "Hm."
            return super().__call__(call)

    done, _ = run(prompt("A yes. B no."), Failing(), statements_per_call=6)
    assert done.outcomes[0].score == 5
    assert (done.count("faithfulness.verify_many"), done.count("faithfulness.verify")) == (1, 2)


def test_a_batch_the_endpoint_lost_is_not_asked_again_here():
    class Down(TruthJudge):
        def __call__(self, call):
            return (
                Reply(failure="http", detail="503") if "verify" in call.template else super().__call__(call)
            )

    done, _ = run(prompt("A yes. B no."), Down(), statements_per_call=6)
    assert done.outcomes[0].reason == "http"
    assert done.count("faithfulness.verify") == 0


def test_one_lost_verdict_fails_the_answer_that_needs_it_alone():
    class Losing(TruthJudge):
        def __call__(self, call):
            if call.template.endswith(".verify") and "B" in inside(call, "statement"):
                return Reply(failure="timeout")
            return super().__call__(call)

    done, _ = run(prompt("A yes. B no.", "A yes."), Losing())
    assert [(o.score, o.reason) for o in done.outcomes] == [(None, "timeout"), (10, None)]


@pytest.mark.parametrize("size", [1, 6])
def test_a_stated_share_of_statements_may_fail_and_is_recorded(size):
    class Losing(TruthJudge):
        def __call__(self, call):
            if call.template.endswith(".verify") and "B" in inside(call, "statement"):
                return Reply(failure="refused")
            return super().__call__(call)

    one = prompt("A yes. B no. C yes. D yes. E half.", "A yes. B no.")
    done, _ = run(one, Losing(skip=["B"]), statements_per_call=size)
    assert [o.reason for o in done.outcomes] == ["refused", "refused"]
    done, _ = run(one, Losing(skip=["B"]), statements_per_call=size, tolerate_failed=0.2)
    kept, lost = done.outcomes
    assert kept.score == pytest.approx(10 * 3.5 / 4)
    assert kept.evidence["tolerated"] == {
        "failed": 1,
        "of": 5,
        "reasons": {"refused": 1},
        "statements": [2],
    }
    assert [row["failure"] for row in kept.evidence["statements"]] == [None, "refused", None, None, None]
    assert (lost.score, lost.reason) == (None, "refused")  # one of two is no small share


@pytest.mark.parametrize(
    ("rule", "score", "reason"),
    [("full", 10, None), ("zero", 0, None), ("null", None, "no_statements"), (5, 5, None), (0, 0, None)],
)
def test_an_answer_without_statements_is_scored_by_rule(rule, score, reason):
    done, evidence = run(prompt("I'm sorry, I cannot answer that."), lambda call: "NONE", no_statements=rule)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (score, reason)
    assert done.outcomes[0].evidence["statements"] == []
    assert done.outcomes[0].evidence["rule"].startswith("no_statements:")
    assert evidence.searches == []


def test_an_extraction_that_fails_leaves_the_other_answers():
    class Cut(TruthJudge):
        def __call__(self, call):
            if call.template.endswith("extract") and "long" in case_of(call):
                return Reply(text="- A yes.\n- B ha", finish_reason="length")
            return super().__call__(call)

    done, _ = run(prompt("A long yes. B half.", "A yes."), Cut())
    assert [(o.score, o.reason) for o in done.outcomes] == [(None, "truncated"), (10, None)]


def test_a_limit_on_statements_is_recorded_where_it_bites():
    done, _ = run(prompt("A yes. B no. C no.", "A yes."), TruthJudge(), max_statements=2)
    assert done.outcomes[0].score == 5
    assert done.outcomes[0].evidence["statement_cap"] == {"kept": 2, "dropped": 1, "cut": 0}
    assert "statement_cap" not in done.outcomes[1].evidence


def test_a_statement_that_the_schema_ended_is_recorded():
    long = "A claim that goes on. " * 40

    def judge(call):
        if call.template.endswith("extract"):
            return json.dumps({"statements": [long[:100], "Short."]})
        return '{"analysis": "x", "verdict": "Fully supported"}'

    done, _ = run(prompt("Text."), judge, structured=True, item_chars=100)
    assert done.outcomes[0].evidence["statement_cap"] == {"kept": 2, "dropped": 0, "cut": 1}
    done, _ = run(prompt("Text."), judge, structured=True, item_chars=101)
    assert "statement_cap" not in done.outcomes[0].evidence


def test_votes_on_verdicts_are_averaged():
    class Wavering(TruthJudge):
        def __call__(self, call):
            if call.template.endswith(".verify"):
                return (
                    "Seen.\n[["
                    + ["Fully supported", "Partially supported", "No support"][call.sampling.sample]
                    + "]]"
                )
            return super().__call__(call)

    done, _ = run(prompt("A yes. B yes."), Wavering(), votes=3)
    assert done.outcomes[0].score == pytest.approx(5)
    assert done.outcomes[0].evidence["votes"] == [10, 5, 0]
    assert done.outcomes[0].evidence["spread"] == pytest.approx(5)
    row = done.outcomes[0].evidence["statements"][0]
    assert (row["verdict"], row["votes"]) == ("partial", ["full", "partial", "none"])
    assert done.count("faithfulness.extract") == 1


def test_structured_batches_have_a_key_for_each_statement():
    done, _ = run(prompt("A. B. C."), RuleJudge(), statements_per_call=6, structured=True)
    schema = done.calls[-1].json_schema
    assert list(schema["properties"]) == ["S1", "S2", "S3"]
    assert done.outcomes[0].score == 10


def test_structured_replies_with_other_keys_are_missing_verdicts():
    class Wrong(RuleJudge):
        def __call__(self, call):
            if call.template.endswith("verify_many"):
                one = {"analysis": "x", "verdict": "Fully supported"}
                return json.dumps({"S1": one, "S7": one, "S2": {"verdict": "sure"}})
            return super().__call__(call)

    done, _ = run(prompt("A. B. C."), Wrong(verdict="none"), statements_per_call=6, structured=True)
    assert done.count("faithfulness.verify") == 2
    assert [row["verdict"] for row in done.outcomes[0].evidence["statements"]] == ["full", "none", "none"]


claims = st.lists(st.sets(st.integers(0, 9), max_size=5), max_size=20).map(
    lambda rows: [
        Claim(n, f"s{n}", (0,), tuple(Span(i * 10, i * 10 + 10) for i in sorted(row)))
        for n, row in enumerate(rows, 1)
    ]
)


@given(claims, st.integers(1, 6))
def test_groups_hold_every_claim_once(all_claims, size):
    batches = group(all_claims, size)
    assert sorted(c.id for batch in batches for c in batch) == [c.id for c in all_claims]
    assert all(len(batch) <= size for batch in batches)
    assert len(batches) == -(-len(all_claims) // size)
    assert batches == group(all_claims, size)


def test_groups_put_shared_evidence_together():
    near, far = (Span(0, 10), Span(10, 20)), (Span(500, 510), Span(510, 520))
    mixed = [Claim(n, f"s{n}", (0,), near if n % 2 else far) for n in range(1, 7)]
    assert [{c.id % 2 for c in batch} for batch in group(mixed, 3)] == [{1}, {0}]
