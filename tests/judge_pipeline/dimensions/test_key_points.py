import pytest
from judging import PlainDocument, drive, inside

from judge_pipeline.calls.call import Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.key_points import distinct_points, groups
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.replies.lists import Items

CHUNK = 400


def points_of(*chunks):
    """The distinct points of a document whose chunks say, and give as key points, so much."""
    text = "".join(" ".join(chunk).ljust(CHUNK) for chunk in chunks)
    return distinct_points([Items(tuple(chunk)) for chunk in chunks], PlainDocument(text, chunk_chars=CHUNK))


SAME = [
    ("The ferry stopped in 1953.", "In the end the ferry stopped running in the winter of 1953."),
    ("Ice damaged the hull.", "Ice had damaged the hull of the ferry."),
    ("The board approved the plan.", "The Board approved a plan in June!"),
    ("渡船于1953年停航。", "渡船于1953年停航，因为船体被冰撞坏。"),
]
DIFFERENT = [
    ("The share rose to 44 per cent in 1998.", "The share rose to 45 per cent in 1998."),
    ("Arson was ruled out.", "Arson was not ruled out by the inquiry."),
    ("The US exported 40 tons.", "The UK exported 40 tons."),
    ("Oxford beat Cambridge.", "Cambridge beat Oxford."),
    ("The board approved the budget of the school.", "The board rejected the budget of the school."),
    ("渡船停航。", "渡船没有停航。"),
]


@pytest.mark.parametrize(("short", "full"), SAME)
@pytest.mark.parametrize("turned", [False, True])
def test_a_point_that_says_nothing_of_its_own_is_merged_and_keeps_its_place(short, full, turned):
    chunks = [full, "Between."], [short]
    points = points_of(*(chunks[::-1] if turned else chunks))
    assert sorted(point.text for point in points) == sorted([full, "Between."])
    kept = next(point for point in points if point.text == full)
    row = kept.row(covered=True)
    assert row["chunk"] == turned
    assert [place["chunk"] for place in row["also"]] == [not turned]
    assert row["also"][0]["start"] // CHUNK == (not turned)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_points_that_differ_in_what_they_say_stay_apart(one, other):
    points = points_of([one], [other])
    assert [point.text for point in points] == [one, other]
    assert all("also" not in point.row(None) for point in points)


def test_points_stay_in_document_order_and_equal_ones_are_the_first():
    points = points_of(
        ["A quay was built."], ["Pilots kept a book."], ["A quay was built.", "A tax was lifted."]
    )
    assert [(point.text, point.chunk) for point in points] == [
        ("A quay was built.", 0),
        ("Pilots kept a book.", 1),
        ("A tax was lifted.", 2),
    ]
    assert [one.chunk for one in points[0].also] == [2]


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (1, [1]), (100, [100]), (101, [50, 51]), (300, [100] * 3)]
)
def test_groups_are_as_few_and_as_equal_as_can_be(count, sizes):
    assert [len(one) for one in groups(range(count), 100)] == sizes


# ---- hundreds of key points --------------------------------------------------------------------------------

CONTEXT = "".join(f"Chapter {n} tells of the year {1000 + n}. ".ljust(40) for n in range(250))


class YearJudge:
    """Gives the sentences of a chunk; an answer covers the years it names, and the rating is their share."""

    def __init__(self, failing=""):
        self.failing = failing

    def __call__(self, call):
        if call.template.endswith(".extract"):
            lines = inside(call, "document").split(". ")
            return "\n".join(f"- {line.strip()}." for line in lines if "year" in line)
        points = inside(call, "key-points").splitlines()
        if self.failing and any(self.failing in point for point in points):
            return Reply(failure="refused", detail="no")
        years = [point.rstrip(".").split()[-1] for point in points]
        missed = [n for n, year in enumerate(years, 1) if year not in inside(call, "answer").split()]
        rating = round(10 * (1 - len(missed) / len(points)))
        return f"{len(points)} seen.\nMissed: {', '.join(f'K{n}' for n in missed) or 'none'}\nRating: [[{rating}]]"


def run(judge=None, **options):
    answer = " ".join(str(1000 + n) for n in range(100))
    responses = [{"id": "a", "text": answer}, {"id": "b", "text": "1000 1249"}]
    one = Prompt(id="p", context=CONTEXT, query="Which years?", responses=responses)
    plans = build_dimensions(["completeness"], JudgeOptions(**options))
    return drive(plans, one, PlainDocument(CONTEXT), judge or YearJudge())


def test_hundreds_of_key_points_are_covered_in_groups():
    done = run()
    cover = [call for call in done.calls if call.template == "completeness.cover"]
    assert [len(inside(call, "key-points").splitlines()) for call in cover] == [83, 83, 84] * 2
    first = done.outcomes[0]
    rows = first.evidence["key_points"]
    assert [row["covered"] for row in rows] == [n < 100 for n in range(250)]
    assert first.score == pytest.approx((83 * 10 + 83 * 2 + 84 * 0) / 250)
    assert first.evidence["votes"] == [pytest.approx(first.score)]
    assert [(one["of"], one["score"]) for one in first.evidence["groups"]] == [
        ("K1–K83", 10),
        ("K84–K166", 2),
        ("K167–K250", 0),
    ]
    assert first.evidence["analysis"].startswith("K1–K83: 83 seen.\n\nK84–K166: 83 seen.")
    second = done.outcomes[1].evidence["key_points"]
    assert [n for n, row in enumerate(second) if row["covered"]] == [0, 249]


def test_how_many_are_covered_in_one_call_is_a_setting():
    assert run(key_points_per_call=40).count("completeness.cover") == 7 * 2
    whole = run(key_points_per_call=250)
    assert whole.count("completeness.cover") == 2
    assert "groups" not in whole.outcomes[0].evidence
    assert whole.outcomes[0].score == 4


def test_votes_on_groups_are_averaged_by_vote():
    def judge(call):
        if call.template.endswith("extract"):
            return YearJudge()(call)
        group = int(inside(call, "key-points").split(" tells")[0].split()[-1]) // 100
        return f"A.\nRating: [[{2 * call.sampling.sample + group}]]"

    outcome = run(judge, votes=3).outcomes[0]
    # Groups of 83, 83 and 84 points, whose first chapters are 0, 83 and 166.
    assert outcome.evidence["votes"] == [pytest.approx(2 * vote + 84 / 250) for vote in range(3)]
    assert outcome.score == pytest.approx(2 + 84 / 250)
    assert outcome.evidence["spread"] == pytest.approx(2)


def test_a_group_that_fails_fails_completeness_and_says_which():
    outcome = run(YearJudge(failing="Chapter 100 ")).outcomes[0]
    assert (outcome.score, outcome.reason) == (None, "refused")
    assert outcome.detail == "coverage of K84–K166: no"
    covered = [row["covered"] for row in outcome.evidence["key_points"]]
    assert covered == [True] * 83 + [None] * 83 + [False] * 84
