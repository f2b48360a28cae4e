import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import PlainDocument, RuleJudge, case_of, drive, inside

from judge_pipeline.calls.call import Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.citation import locate
from judge_pipeline.documents.words import sentence_spans

# Each chapter is one chunk of the plain evidence: 400 characters.
CONTEXT = "".join(f"Chapter {n} tells of the year {1880 + n}. ".ljust(399, ".") + " " for n in range(4))


def prompt(*texts):
    return Prompt(
        id="p",
        context=CONTEXT,
        query="Which years?",
        responses=[{"id": str(i), "text": t} for i, t in enumerate(texts or ("All.",))],
    )


class ChapterJudge(RuleJudge):
    """Takes the sentence on the chapter from each chunk; an answer covers the years it names."""

    def __call__(self, call):
        if call.template.endswith(".extract"):
            found = [s.strip() + "." for s in inside(call, "document").split(".") if "tells" in s]
            return "\n".join(f"- {item}" for item in found) or "NONE"
        points = inside(call, "key_points".replace("_", "-")).splitlines()
        answer = inside(call, "answer")
        missed = [n for n, point in enumerate(points, 1) if point.split()[-1].rstrip(".") not in answer]
        rating = round(10 * (1 - len(missed) / len(points)))
        return f"Checked.\nMissed: {', '.join(f'K{n}' for n in missed) or 'none'}\nRating: [[{rating}]]"


def run(one, judge, **options):
    return drive(
        build_dimensions(["completeness"], JudgeOptions(**options)), one, PlainDocument(CONTEXT), judge
    )


def test_key_points_once_and_coverage_for_each_answer():
    one = prompt("1880, 1881, 1882 and 1883.", "1880 and 1881.", "None of them.")
    done = run(one, ChapterJudge())
    chunks = len(PlainDocument(CONTEXT).chunks)
    assert done.count("completeness.extract") == chunks
    assert done.count("completeness.cover") == 3
    assert [o.score for o in done.outcomes] == [10, 5, 0]
    points = done.outcomes[1].evidence["key_points"]
    assert [p["covered"] for p in points] == [True, True, False, False]
    assert points[0]["text"] == "Chapter 0 tells of the year 1880."
    for point in points:
        cited = CONTEXT[point["start"] : point["end"]]
        assert point["text"].rstrip(".") in cited
        assert len(cited) < 400  # the sentence, not the whole chunk
        chunk = PlainDocument(CONTEXT).chunks[point["chunk"]]
        assert chunk.start <= point["start"] < point["end"] <= chunk.end
    assert done.outcomes[1].evidence["votes"] == [5]
    assert done.outcomes[1].evidence["analysis"] == "Checked."


@pytest.mark.parametrize(("language", "places"), [("en", ["(0%) ", "(25%) "]), ("zh", ["（0%）", "（25%）"])])
def test_the_judge_is_told_where_in_the_document_each_key_point_stands(language, places):
    done = run(prompt(), ChapterJudge(), language=language)
    points = inside(done.calls[-1], "key-points").splitlines()
    assert points[0].startswith(f"K1: {places[0]}Chapter 0")
    assert points[1].startswith(f"K2: {places[1]}Chapter 1")
    assert done.outcomes[0].evidence["key_points"][1]["text"].startswith("Chapter 1")


def test_the_head_of_the_coverage_prompt_is_the_same_for_all_answers():
    done = run(prompt("One.", "Two."), ChapterJudge())
    one, two = (case_of(call) for call in done.calls if call.template.endswith("cover"))
    assert one.split("<answer-")[0] == two.split("<answer-")[0]
    assert len(one.split("<answer-")[0]) > 100


def test_extraction_does_not_depend_on_the_answers():
    a, b = run(prompt("One."), ChapterJudge()), run(prompt("Two.", "Three."), ChapterJudge())
    keys = [{c.key("m") for c in done.calls if c.template.endswith("extract")} for done in (a, b)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "reply",
    [Reply(text="- a\n- b", finish_reason="length"), Reply(failure="timeout"), "Here you are, as asked."],
)
def test_one_chunk_that_fails_fails_completeness_and_says_which(reply):
    class Failing(ChapterJudge):
        def __call__(self, call):
            if call.template.endswith("extract") and "Chapter 2" in inside(call, "document"):
                return reply
            return super().__call__(call)

    done = run(prompt("One.", "Two."), Failing())
    assert {o.score for o in done.outcomes} == {None}
    assert {o.reason for o in done.outcomes} <= {"truncated", "timeout", "unparsable"}
    assert "chunk 3 of" in done.outcomes[0].detail
    assert done.count("completeness.cover") == 0


class OneChunkFails(ChapterJudge):
    """Chapter 2 of the four fails, for the reason given."""

    def __init__(self, reason):
        super().__init__()
        self.reason = reason

    def __call__(self, call):
        if call.template.endswith("extract") and "Chapter 2" in inside(call, "document"):
            return Reply(failure=self.reason)
        return super().__call__(call)


def test_a_stated_share_of_chunks_may_fail_and_is_recorded():
    context = "".join(f"Chapter {n} tells of the year {1880 + n}. ".ljust(399, ".") + " " for n in range(10))
    one = prompt("1880, 1881.").model_copy(update={"context": context})
    for share, score in ((0.0, None), (0.09, None), (0.1, 2)):
        plans = build_dimensions(["completeness"], JudgeOptions(tolerate_failed=share))
        outcome = drive(plans, one, PlainDocument(context), OneChunkFails("truncated")).outcomes[0]
        assert outcome.score == score, share
    assert len(outcome.evidence["key_points"]) == 9
    assert [point["chunk"] for point in outcome.evidence["key_points"]] == [0, 1, *range(3, 10)]
    lost = {"failed": 1, "of": 10, "reasons": {"truncated": 1}, "chunks": [2]}
    assert outcome.evidence["tolerated"] == lost
    assert JudgeOptions().tolerate_failed == 0


@pytest.mark.parametrize("reason", ["stopped", "pending"])
def test_a_chunk_nobody_was_asked_about_yet_is_never_tolerated(reason):
    context = CONTEXT * 10
    one = prompt("1880, 1881.").model_copy(update={"context": context})
    plans = build_dimensions(["completeness"], JudgeOptions(tolerate_failed=0.2))
    calls = iter(range(99))

    def judge(call):
        return (
            Reply(failure={0: "truncated", 1: reason}[at])
            if (at := next(calls)) < 2
            else ChapterJudge()(call)
        )

    outcome = drive(plans, one, PlainDocument(context), judge).outcomes[0]
    assert (outcome.score, outcome.reason) == (None, reason)


@pytest.mark.parametrize(
    ("rule", "score", "reason"),
    [("full", 10, None), ("zero", 0, None), ("null", None, "no_statements"), (4, 4, None)],
)
def test_a_document_without_key_points_is_scored_by_rule(rule, score, reason):
    done = run(prompt(), lambda call: "NONE", no_key_points=rule)
    assert (done.outcomes[0].score, done.outcomes[0].reason) == (score, reason)
    assert done.outcomes[0].evidence["rule"].startswith("no_key_points:")
    assert done.count("completeness.cover") == 0


@pytest.mark.parametrize("structured", [False, True])
def test_by_default_the_judge_is_asked_even_without_key_points(structured):
    def judge(call):
        if call.template.endswith("extract"):
            return '{"key_points": []}' if structured else "NONE"
        return '{"analysis": "It says so.", "rating": 10}' if structured else "It says so.\nRating: [[10]]"

    done = run(prompt("The document does not say."), judge, structured=structured)
    assert done.outcomes[0].score == 10
    assert done.outcomes[0].evidence["rule"] == "no_key_points:ask"
    assert done.outcomes[0].evidence["key_points"] == []
    if structured:
        assert "missed" not in done.calls[-1].json_schema["properties"]


def test_repeated_key_points_are_listed_once():
    done = run(
        prompt(),
        lambda call: (
            "- The same point." if call.template.endswith("extract") else "A.\nMissed: K1, K9\nRating: [[3]]"
        ),
    )
    assert [p["covered"] for p in done.outcomes[0].evidence["key_points"]] == [False]


def test_without_a_missed_line_coverage_is_unknown():
    done = run(
        prompt(), lambda call: "- A point." if call.template.endswith("extract") else "A.\nRating: [[3]]"
    )
    assert done.outcomes[0].score == 3
    assert done.outcomes[0].evidence["key_points"][0]["covered"] is None


def test_a_limit_on_key_points_is_recorded_where_it_bites():
    done = run(
        prompt(),
        lambda call: "- A.\n- B.\n- C." if call.template.endswith("extract") else "A.\nRating: [[3]]",
        max_key_points=2,
    )
    chunks = len(PlainDocument(CONTEXT).chunks)
    assert done.outcomes[0].evidence["key_point_cap"] == {
        "chunks": list(range(chunks)),
        "dropped": chunks,
        "cut": 0,
    }
    assert [p["text"] for p in done.outcomes[0].evidence["key_points"]] == ["A.", "B."]


def test_votes_on_coverage():
    ratings = {0: 2, 1: 4, 2: 9}

    def judge(call):
        if call.template.endswith("extract"):
            return "- A."
        return f"A.\nRating: [[{ratings[call.sampling.sample]}]]"

    done = run(prompt(), judge, votes=3)
    assert done.outcomes[0].score == 5
    assert done.outcomes[0].evidence["votes"] == [2, 4, 9]
    assert {c.sampling.temperature for c in done.calls if c.template.endswith("extract")} == {0}


# ---- where key points come from ----------------------------------------------------------------------------

FERRY = (
    "The ferry stopped running in the winter of 1953, when ice damaged its hull. The council first meant to have it "
    "repaired; the estimate of 48,000 crowns ended the discussion. Gudrun Vik moved to her sister's. In 1955 the "
    "road bridge two kilometres upstream was opened."
)


@pytest.mark.parametrize(
    ("point", "cited"),
    [
        (
            "Ice damaged the ferry's hull in the winter of 1953.",
            "The ferry stopped running in the winter of 1953, when ice damaged its hull.",
        ),
        (
            "A road bridge upstream was opened in 1955.",
            "In 1955 the road bridge two kilometres upstream was opened.",
        ),
        ("Something else entirely, of which nobody wrote.", None),
        ("", None),
    ],
)
def test_key_points_are_found_again_in_the_document(point, cited):
    place = locate(FERRY, [point])[0]
    assert (FERRY[place[0] : place[1]].strip() if place else None) == cited


def test_key_points_over_two_sentences_and_in_chinese():
    place = locate(
        FERRY,
        [
            "The ferry stopped when ice damaged its hull in 1953 and the council's estimate of 48,000 crowns ended repair."
        ],
    )[0]
    assert FERRY[place[0] : place[1]].strip().endswith("ended the discussion.")
    assert place[0] == 0
    text = "灯塔由莫英设计。它于1887年建成，比计划晚了两年。港口后来淤塞。"
    place = locate(text, ["灯塔于1887年建成，晚了两年。"])[0]
    assert text[place[0] : place[1]].endswith("它于1887年建成，比计划晚了两年。")


@given(st.text(max_size=120), st.text(max_size=40))
def test_citations_lie_inside_the_text(text, point):
    spans = sentence_spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    place = locate(text, [point])[0]
    assert place is None or 0 <= place[0] < place[1] <= len(text)


# ---- the plan as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize(("answers", "statements"), [(1, 1), (4, 3), (10, 10)])
def test_calls_are_within_the_formula(size, answers, statements):
    """At most C + 3N + verification + N calls; the reference makes C + N(4 + S)."""
    texts = [
        " ".join(f"Claim {i * statements + s} of all." for s in range(statements)) for i in range(answers)
    ]
    one = prompt(*texts)
    done = drive(
        build_dimensions(["paper"], JudgeOptions(statements_per_call=size)),
        one,
        PlainDocument(CONTEXT),
        RuleJudge(),
    )
    chunks = len(PlainDocument(CONTEXT).chunks)
    verification = -(-answers * statements // size)
    assert len(done.calls) == chunks + 3 * answers + verification + answers
    if size == 1:
        assert len(done.calls) == chunks + answers * (4 + statements)


def test_duplicates_cost_nothing():
    texts = ["Claim one. Shared claim.", "Claim two. Shared claim.", "Claim one. Shared claim."]
    done = drive(
        build_dimensions(["paper"], JudgeOptions()), prompt(*texts), PlainDocument(CONTEXT), RuleJudge()
    )
    chunks = len(PlainDocument(CONTEXT).chunks)
    # Two of the three answers are the same text: their calls are the same calls.
    assert len(done.calls) == chunks + 4 * 2 + 3


def test_the_trajectory_set_runs_on_its_own_prompts():
    done = drive(
        build_dimensions(["trajectory"], JudgeOptions()),
        prompt("I read it. I wrote it."),
        PlainDocument(CONTEXT),
        RuleJudge(verdict="partial"),
    )
    assert [o.score for o in done.outcomes] == [7, 5]
    assert {c.template.split(".")[0] for c in done.calls} == {"plan_completeness", "execution_faithfulness"}
    assert "statements" in done.outcomes[1].evidence
    assert "key_points" in done.outcomes[0].evidence
