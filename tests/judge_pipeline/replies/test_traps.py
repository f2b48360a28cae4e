"""Each known trap of the reference implementation, as a test that ours does not fall into it."""

import json

import pytest
from document_helpers import CountingEmbedder, byte_level_bpe, check_cover, document
from judging import PlainDocument, RuleJudge, drive, inside

from judge_pipeline.calls.call import Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import read_rating
from judge_pipeline.replies.verdicts import read_verdict


def prompt(*texts, context="The lighthouse was finished in 1887. " * 30, **fields):
    responses = [{"id": n, "text": text} for n, text in enumerate(texts)]
    return Prompt(**{"id": "p", "context": context, "query": "When?", "responses": responses} | fields)


def run(names, one, judge, **options):
    return drive(build_dimensions(names, JudgeOptions(**options)), one, PlainDocument(one.context), judge)


def test_not_fully_supported_is_not_full_support():
    assert read_verdict("[[Not fully supported]]").support == "partial"
    assert read_verdict("[[Not supported]]").support == "none"


def test_supported_and_full_support_are_full_support():
    assert read_verdict("[[Supported]]").support == read_verdict("[[Full support]]").support == "full"


def test_85_is_no_rating():
    assert read_rating("Rating: [[85]]").reason == "out_of_range"


def test_8_of_10_is_8():
    assert read_rating("Rating: [[8/10]]").points == 8


def test_a_refusal_is_labelled_by_rule_and_earns_no_faithfulness_by_default():
    one = prompt("I'm sorry, but the document does not let me answer.")

    def judge(call):
        return "NONE" if call.template == "faithfulness.extract" else RuleJudge()(call)

    for options, score, rule in (({}, None, "null"), ({"no_statements": "full"}, 10, "full")):
        done = run(["paper"], one, judge, **options)
        assert [o.score for o in done.outcomes] == [7, 7, score, 7]
        assert done.outcomes[2].evidence["rule"] == f"no_statements:{rule}"
    assert "no score" in JudgeOptions.model_fields["no_statements"].description


@pytest.mark.parametrize("structured", [False, True])
def test_no_relevant_information_erases_only_what_it_stands_for(structured):
    points = [
        "The lighthouse was finished in 1887.",
        "No relevant information",
        "It burned oil; no relevant information on cost is given.",
    ]

    def judge(call):
        if call.template.endswith("extract"):
            return json.dumps({"key_points": points}) if structured else "\n".join(f"- {p}" for p in points)
        return RuleJudge()(call)

    done = run(["completeness"], prompt("In 1887."), judge, structured=structured)
    assert [p["text"] for p in done.outcomes[0].evidence["key_points"]] == [points[0], points[2]]
    # And one such chunk says nothing about the others.
    first = [True]

    def one_empty(call):
        if call.template.endswith("extract"):
            if first.pop() if first else False:
                return "No relevant information"
            return "- A point."
        return "A.\nMissed: none\nRating: [[7]]"

    done = run(["completeness"], prompt("In 1887."), one_empty)
    assert len(done.outcomes[0].evidence["key_points"]) == 1


def test_a_truncated_statement_list_is_not_accepted():
    cut = Reply(text="- The lighthouse was finished in 1887.\n- It was desi", finish_reason="length")
    done = run(["faithfulness"], prompt("In 1887."), lambda call: cut)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (None, "truncated")


@pytest.mark.parametrize(
    "notice",
    [
        "系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入易产生敏感内容的提示语，感谢您的配合。",
        "The response was filtered due to the prompt triggering our content management policy.",
        "I'm sorry, but I can't assist with that request.",
    ],
)
@pytest.mark.parametrize("names", [["helpfulness"], ["faithfulness"], ["completeness"]])
def test_a_content_filter_notice_is_no_judge_text(notice, names):
    done = run(names, prompt("In 1887."), lambda call: notice)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (None, "refused")
    filtered = Reply(text="- The lighthouse was", finish_reason="content_filter")
    done = run(names, prompt("In 1887."), lambda call: filtered)
    assert done.outcomes[0].reason == "refused"


@pytest.mark.parametrize("broken", ["helpfulness", "logicality", "faithfulness", "completeness"])
def test_a_failed_dimension_keeps_the_other_three(broken):
    def judge(call):
        return Reply(failure="http") if call.template.startswith(broken) else RuleJudge()(call)

    done = run(["paper"], prompt("In 1887."), judge)
    names = ["helpfulness", "logicality", "faithfulness", "completeness"]
    assert {n for n, o in zip(names, done.outcomes, strict=True) if o.score is None} == {broken}


def test_a_document_is_not_embedded_again_for_each_answer():
    embedder = CountingEmbedder()
    builder = DocumentIndexer(embedder=embedder)
    one = prompt(
        "It was finished in 1887. It burned oil.",
        "It was built in 1911.",
        "Nobody knows.",
        context=document(),
    )
    for name in ("a", "b"):
        again = one.model_copy(update={"id": name, "query": f"Question {name}?"})
        drive(build_dimensions(["paper"], JudgeOptions()), again, builder.build(one.context), RuleJudge())
    segments = len(builder.build(one.context).segments)
    assert sum(len(batch) == segments for batch in embedder.batches) == 1
    # One request for the document, one for the statements of the first prompt; the second's are known.
    assert embedder.requests == 2


def test_chunks_are_told_apart_beyond_any_number():
    """The reference keys chunks by rounded percentages, which collide above about 200 chunks."""
    sentences = [f"Fact number {n} is that of year {n}." for n in range(1000)]
    one = prompt("All.", context="".join(s.ljust(40) for s in sentences))

    def judge(call):
        return RuleJudge()(call) if call.template.endswith("extract") else "A.\nMissed: none\nRating: [[7]]"

    done = drive(
        build_dimensions(["completeness"], JudgeOptions()),
        one,
        PlainDocument(one.context, chunk_chars=80),
        judge,
    )
    points = done.outcomes[0].evidence["key_points"]
    assert len(points) == 1000
    assert len({point["chunk"] for point in points}) == 500
    assert all(point["text"].rstrip(".") in one.context[point["start"] : point["end"]] for point in points)


def test_ids_may_be_any_text():
    responses = [{"id": "a/β-01", "text": "In 1887."}, {"id": 17, "text": "In 1911."}]
    one = prompt(id="doc:é#1", responses=responses)
    done = run(["paper"], one, RuleJudge())
    assert all(outcome.score is not None for outcome in done.outcomes)


def test_cuts_never_fall_inside_a_character():
    text = "甲骨文的发现推动了我国考古学的发展。" * 60
    bpe = byte_level_bpe()

    class Tokens:
        def offsets(self, text):
            return bpe.encode(text).offsets

    evidence = DocumentIndexer(tokenizer=Tokens(), embedder=CountingEmbedder()).build(text)
    check_cover(text, evidence.segments)
    check_cover(text, evidence.chunks)
    ids = bpe.encode(text).ids
    pieces = [bpe.decode(ids[i : i + 128]) for i in range(0, len(ids), 128)]
    assert (
        sum("\ufffd" in piece for piece in pieces) > len(pieces) / 4
    )  # the trap is real under this tokenizer


def test_a_missing_verdict_is_a_failure_and_not_support():
    def judge(call):
        if call.template.endswith("verify_many"):
            return "S1: Passage 1 says so. [[Fully supported]]"
        return "Hm." if call.template.endswith("verify") else RuleJudge()(call)

    done = run(["faithfulness"], prompt("One claim. Another claim."), judge, statements_per_call=6)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (None, "missing_verdict")


def test_placeholders_in_a_document_are_left_alone():
    context = "Use {answer} and {question} in a template. " * 20
    done = run(["completeness"], prompt("UNIQUE ANSWER", context=context), RuleJudge())
    extraction = next(call for call in done.calls if call.template.endswith("extract"))
    assert "{answer} and {question}" in inside(extraction, "document")
    assert "UNIQUE ANSWER" not in inside(extraction, "document")


def test_an_unreadable_reply_is_not_scored_as_zero():
    assert isinstance(read_rating("Hm."), Problem)
    done = run(["paper"], prompt("In 1887."), lambda call: "Hm.")
    assert {outcome.score for outcome in done.outcomes} == {None}


def test_extraction_for_completeness_is_asked_once_for_all_answers():
    done = run(["completeness"], prompt("One.", "Two.", "Three."), RuleJudge())
    assert done.count("completeness.extract") == len(PlainDocument(prompt("x").context).chunks)
