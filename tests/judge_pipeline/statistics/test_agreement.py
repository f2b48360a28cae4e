"""Agreement figures against scipy and scikit-learn computed the plain way, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from judge_pipeline.common.records import Label, Preference, Prompt, Response
from judge_pipeline.statistics.agreement import (
    PROMPT_METRICS,
    calibration,
    decided_pairs,
    krippendorff_alpha,
    pair_accuracy,
    pair_counts,
    prompt_metrics,
    quadratic_kappa,
    set_metrics,
    spearman_ceiling,
    tie_counts,
    within_kappa,
)
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.compare import PREFERENCES, Comparison, Predictor, length_bins
from judge_pipeline.statistics.render import WIDTH, interval, markdown_table, terminal_table
from judge_pipeline.statistics.table import AnswerTable, Pair, build_table, score_columns, score_names

points = st.lists(st.integers(0, 4), min_size=2, max_size=6)


def table_of(sizes: list[int], documents: list[str] | None = None) -> AnswerTable:
    prompts = [
        Prompt(
            id=f"p{number}",
            document_id=documents[number] if documents else f"d{number}",
            context="word " * 400 * (number + 1),
            query="What?",
            responses=[Response(id=str(i), text=f"answer {i}") for i in range(size)],
        )
        for number, size in enumerate(sizes)
    ]
    return build_table(prompts, group=lambda prompt: "even" if int(prompt.id[1:]) % 2 == 0 else "odd")


def test_within_prompt_correlations_are_means_of_scipys():
    rng = np.random.default_rng(0)
    table = table_of([4, 5, 3])
    target, predicted = rng.integers(0, 10, 12).astype(float), rng.random(12)
    found = prompt_metrics(table, target, predicted)
    for name, compute in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        values = [compute(target[rows], predicted[rows]).statistic for _, rows in table.slices()]
        assert found[name].value == pytest.approx(np.mean(values))


def test_prompts_without_an_order_do_not_count_and_missing_scores_are_left_out():
    table = table_of([3, 3, 3])
    target = np.array([5, 5, 5, 1, 2, 3, 1, np.nan, 2])
    predicted = np.array([1, 2, 3, 1, 2, 3, 9, 0, np.nan])
    found = prompt_metrics(table, target, predicted)
    assert found["spearman"].denominator_P.tolist() == [0, 1, 0]
    assert found["spearman"].value == 1.0
    assert found["pairs"].denominator_P.sum() == 3


@given(points, points)
def test_pairs_equal_counting_them_one_by_one(target, predicted):
    size = min(len(target), len(predicted))
    a, b = np.array(target[:size], float), np.array(predicted[:size], float)
    won = decided = 0.0
    for i, j in itertools.combinations(range(size), 2):
        if a[i] != a[j]:
            decided += 1
            won += 0.5 if b[i] == b[j] else float((a[i] > a[j]) == (b[i] > b[j]))
    assert pair_counts(a, b) == (won, decided)
    table = table_of([size])
    ties = tie_counts(table, a, b)
    assert ties["decided"] == decided
    assert ties["pairs"] == size * (size - 1) / 2
    pairs = decided_pairs(table, a)
    if pairs:
        assert pair_accuracy(table, pairs, b).value == pytest.approx(won / decided)


def test_best_worst_and_regret_by_hand():
    table = table_of([4])
    target = np.array([9.0, 2.0, 7.0, 9.0])
    predicted = np.array([5.0, 1.0, 8.0, 5.0])
    found = {name: ratio.value for name, ratio in prompt_metrics(table, target, predicted).items()}
    assert set(found) == set(PROMPT_METRICS)
    assert found["best_of_n"] == 0.0  # answer 2 would be taken; 0 and 3 are the best
    assert found["worst_of_n"] == 1.0
    assert found["regret"] == 2.0
    assert found["same_pair"] == 0.0
    assert found["pair_direction"] == 1.0  # 7 against 2
    assert found["pairs"] == pytest.approx(3 / 5)  # 0-1, 1-2, 1-3 right; 2 is wrongly above 0 and 3


def test_a_perfect_prediction_is_perfect_and_a_constant_is_chance():
    table = table_of([4, 4])
    target = np.array([1.0, 2, 3, 4, 4, 3, 2, 1])
    perfect = {name: ratio.value for name, ratio in prompt_metrics(table, target, 3 * target + 1).items()}
    assert perfect.pop("regret") == 0.0
    assert all(value == pytest.approx(1.0) for value in perfect.values())
    constant = {name: ratio.value for name, ratio in prompt_metrics(table, target, np.ones(8)).items()}
    assert constant["spearman"] == constant["kendall"] == 0.0
    assert constant["pairs"] == constant["pair_direction"] == 0.5
    assert constant["best_of_n"] == constant["worst_of_n"] == 0.25
    assert constant["same_pair"] == pytest.approx(1 / 12)
    assert constant["regret"] == 1.5
    assert constant["best_above_chance"] == constant["somers_d"] == 0.0


def test_whole_set_figures_equal_scipy_and_sklearn():
    rng = np.random.default_rng(1)
    table = table_of([5] * 8)
    target = rng.integers(0, 10, 40).astype(float)
    predicted = target + rng.normal(0, 2, 40)
    boot = DocumentBootstrap(table.document_P, 100)
    found = set_metrics(table, target, predicted, boot)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(target, predicted).statistic)
    assert found["kendall"].value == pytest.approx(stats.kendalltau(target, predicted).statistic)
    assert found["mae"].value == pytest.approx(mean_absolute_error(target, predicted))
    assert found["spearman"].low < found["spearman"].value < found["spearman"].high
    assert "mae" not in set_metrics(table, target, predicted, boot, in_points=False)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2, max_size=30))
def test_quadratic_kappa_is_one_minus_observed_over_expected_squared_distance(rows):
    """Cohen 1968 with quadratic weights, from its definition."""
    target, predicted = np.array(rows, float).T
    expected = np.mean((target[:, None] - predicted[None, :]) ** 2)
    found = quadratic_kappa(target, predicted + 0.3)
    if expected == 0:
        assert found is None
    else:
        assert found == pytest.approx(1 - np.mean((target - predicted) ** 2) / expected)
        theirs = cohen_kappa_score(
            target.astype(int), predicted.astype(int), weights="quadratic", labels=range(11)
        )
        assert found == pytest.approx(theirs)


def test_alpha_is_krippendorffs_own_example():
    """Four observers, twelve units, gaps: interval α is 0.849 ("Computing Krippendorff's Alpha-Reliability")."""
    gap = np.nan
    values = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
            [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
        ]
    )
    assert krippendorff_alpha(values) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(np.full((2, 5), 7.0)) is None  # one value only: nothing can be told
    assert krippendorff_alpha(np.array([[1.0, gap], [gap, 2.0]])) is None  # no two ratings of one answer


def test_knowing_which_prompts_are_easy_is_no_agreement_within_them():
    """Right on prompts and blind within: kappa and alpha over the set are high, against chance within they are 0."""
    rng = np.random.default_rng(8)
    table = table_of([6] * 200)
    level = np.repeat(rng.choice([2.0, 8.0], 200), 6)
    target, blind = level + rng.integers(-1, 2, 1200), level + rng.integers(-1, 2, 1200)
    boot = DocumentBootstrap(table.document_P, 50)
    over = set_metrics(table, target, blind, boot)
    assert min(over["kappa"].value, over["alpha"].value) > 0.85
    assert boot.ratio(within_kappa(table, target, blind)).value == pytest.approx(0, abs=0.06)
    assert within_kappa(table, target, target).value == 1
    # The same holds for the best of N: three of six are best here, so picking blindly is right half the time.
    halves = np.tile([1.0, 1, 1, 0, 0, 0], 200)
    figures = prompt_metrics(table, halves, rng.random(1200))
    assert figures["best_of_n"].value == pytest.approx(0.5, abs=0.1)
    assert figures["best_above_chance"].value == pytest.approx(2 * figures["best_of_n"].value - 1)


@given(points, points)
def test_somers_d_within_a_prompt_equals_scipys(target, predicted):
    size = min(len(target), len(predicted))
    a, b = np.array(target[:size], float), np.array(predicted[:size], float)
    found = prompt_metrics(table_of([size]), a, b)["somers_d"].value
    if np.ptp(a) == 0:
        assert found is None
    elif np.ptp(b) == 0:
        assert found == 0
    else:
        assert found == pytest.approx(stats.somersd(a, b).statistic)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=5))
def test_the_ceiling_of_ties_is_the_best_of_all_orders(target):
    values = np.array(target, float)
    found = spearman_ceiling(table_of([len(target)]), values).value
    if np.ptp(values) == 0:
        assert found is None
    else:
        orders = itertools.permutations(range(len(target)))
        assert found == pytest.approx(max(stats.spearmanr(values, order).statistic for order in orders))


def test_rows_are_compared_on_the_answers_that_both_score():
    """A baseline that is silent on the hard half is not ahead for it."""
    table = table_of([4] * 12)
    target = np.tile([1.0, 2.0, 3.0, 4.0], 12)
    model = np.where(np.arange(48) < 24, target, -target)
    partial = np.where(np.arange(48) < 24, target, np.nan)
    predictors = [
        Predictor("model", "model", {"x": model}),
        Predictor("half", "baseline", any_target=partial),
        Predictor("votes", "model", pairs={(1, 0): 1.0, (0, 2): 1.0}),
    ]
    comparison = Comparison(table, predictors, DocumentBootstrap(table.document_P, 50))
    rows = {row["name"]: row for row in comparison.graded("x", target)["rows"]}
    assert rows["model"]["within"]["spearman"]["value"] == 0.0
    assert rows["half"]["within"]["spearman"]["value"] == 1.0
    assert rows["half"]["ahead"]["spearman"] == {"value": 0.0, "low": 0.0, "high": 0.0, "count": 6}
    chosen = comparison.preferred([Pair(0, 1, 0), Pair(0, 2, 0), Pair(11, 45, 44)])
    ahead = {row["name"]: row["ahead"].get("pairs") for row in chosen["rows"]}
    assert ahead["votes"]["value"] is None  # the model has no reward to choose by


def test_no_table_is_wider_than_a_terminal():
    rng = np.random.default_rng(4)
    table = table_of([5] * 30)
    target = rng.integers(0, 3, 150).astype(float)
    predictors = [
        Predictor("reward model", "model", {"faithfulness": rng.random(150) * 10}, in_points=True),
        Predictor("judge, second run", "ceiling", {"faithfulness": target + 0.5}, in_points=True),
        Predictor("log-prob. gain, mean", "baseline", any_target=-target),
    ]
    result = Comparison(table, predictors, DocumentBootstrap(table.document_P, 50)).graded(
        "faithfulness", target
    )
    text, page = terminal_table(result), markdown_table(result)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= WIDTH
    for name in (
        "Somers' D",
        "Cohen's κ",
        "Kendall τ-b",
        "regret",
        "worst of N",
        "Krippendorff's α",
        "κ in points",
    ):
        assert name in page
    assert "model minus this row" in text
    raw, corrected = text.index("best of N"), text.index("chance taken off")
    assert raw < corrected < text.index("model minus this row")  # raw and chance-corrected stand side by side
    assert "keeps Spearman at 0." in " ".join(text.split())


def test_calibration_finds_slope_and_intercept_and_its_bins_hold_everyone():
    predicted = np.linspace(0, 10, 50)
    found = calibration(0.5 * predicted + 2, predicted)
    assert found["slope"] == pytest.approx(0.5)
    assert found["intercept"] == pytest.approx(2)
    assert sum(item["count"] for item in found["bins"]) == 50
    assert found["expected_error"] == pytest.approx(np.abs(0.5 * predicted + 2 - predicted).mean(), abs=0.1)
    assert calibration(predicted, np.ones(50))["slope"] is None


def test_intervals_resample_documents_not_prompts():
    # Six documents of 50 equal prompts each: resampling prompts would claim a narrow interval.
    document = np.repeat(np.arange(6), 50)
    ratio = Ratio(np.repeat([0.0, 1.0] * 3, 50), np.ones(300))
    found = DocumentBootstrap(document, 500).ratio(ratio)
    assert (found.value, found.count) == (0.5, 300)
    assert found.high - found.low > 0.5


def test_few_documents_give_no_interval_rather_than_one_of_width_zero():
    """Counted are the documents that a figure rests on, not those of the whole table."""
    for documents, there in ((1, False), (2, False), (4, False), (5, True)):
        numbers = np.arange(12) % documents
        figure = Ratio(np.ones(12), np.ones(12))
        assert (DocumentBootstrap(numbers, 50).ratio(figure).low is not None) == there
        rows = np.arange(12)
        mean = DocumentBootstrap(numbers, 50).statistic(lambda rows: float(len(rows)), numbers, rows)
        assert (mean.low is not None) == there
    boot = DocumentBootstrap(np.arange(12), 50)
    assert boot.ratio(figure.where(np.arange(12) < 4)).low is None
    assert boot.difference(figure, figure.where(np.arange(12) < 4)).low is None
    assert interval(boot.ratio(figure.where(np.arange(12) < 4)).as_json(), 2) == "1.00 [–]"


def test_interval_agrees_with_scipys_bootstrap_when_every_prompt_is_a_document():
    rng = np.random.default_rng(2)
    values = rng.random(60)
    found = DocumentBootstrap(np.arange(60), 4000).ratio(Ratio(values, np.ones(60)))
    peer = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng)
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.01)


def test_paired_difference_is_narrower_than_the_two_apart():
    rng = np.random.default_rng(3)
    base = rng.random(50)
    boot = DocumentBootstrap(np.arange(50), 1000)
    one, two = Ratio(base + 0.1, np.ones(50)), Ratio(base, np.ones(50))
    gap = boot.difference(one, two)
    assert gap.value == pytest.approx(0.1)
    assert gap.low == pytest.approx(0.1)
    assert boot.ratio(one).low < boot.ratio(two).high  # apart, they would overlap


def test_comparison_puts_model_baseline_and_pair_votes_in_one_table():
    prompts = [
        Prompt(
            id=f"p{n}",
            document_id=f"d{n}",
            context="word " * 300 * (n + 1),
            query="What?",
            responses=[
                Response(id=f"{i}", text="x " * (i + 1), human={"overall": float(i), "faithfulness": None})
                for i in range(3)
            ],
            preferences=[Preference(winner="2", loser="0")],
        )
        for n in range(4)
    ]
    table = build_table(prompts, group=lambda prompt: "a" if prompt.id < "p2" else "b")
    assert score_names(table, "human") == ["overall", "faithfulness"]
    target = score_columns(table, ["overall", "faithfulness"], "human")
    assert list(target) == ["overall"]
    model = Predictor("model", "model", {"reward": target["overall"] * 0.9}, in_points=True)
    against = Predictor("reverse", "baseline", any_target=-target["overall"])
    votes = Predictor(
        "pairwise",
        "model",
        pairs={(table.row_of[f"p{n}", "0"], table.row_of[f"p{n}", "2"]): 0.5 for n in range(4)},
    )
    comparison = Comparison(table, [model, against, votes], DocumentBootstrap(table.document_P, 50))
    graded = comparison.graded("overall", target["overall"])
    rows = {row["name"]: row for row in graded["rows"]}
    assert rows["model"]["within"]["spearman"]["value"] == pytest.approx(1.0)
    assert rows["reverse"]["within"]["pairs"]["value"] == 0.0
    assert rows["reverse"]["ahead"]["pairs"]["value"] == 1.0
    assert rows["model"]["calibration"]["slope"] == pytest.approx(1 / 0.9)
    assert rows["pairwise"]["within"]["pairs"] == {"value": 0.5, "low": None, "high": None, "count": 4}
    assert (
        rows["pairwise"]["within"]["somers_d"]["value"] == 0.0
    )  # undecided throughout is no better than guessing
    assert rows["pairwise"]["ahead"]["pairs"]["value"] == 0.5
    assert set(graded["by_group"]) == {"a", "b"}
    assert list(graded["by_length"]) == ["1k–2k", "2k–4k", "4k–8k"]
    preferred = comparison.preferred(table.preferences())
    assert preferred["target"] == PREFERENCES
    assert {row["name"]: row["within"]["pairs"]["value"] for row in preferred["rows"]} == {
        "model": 1.0,
        "reverse": 0.0,
        "pairwise": 0.5,
    }


def test_every_two_judges_are_compared_on_the_same_resamples():
    rng = np.random.default_rng(6)
    table = table_of([4] * 30)
    target = rng.permuted(np.tile([1.0, 2, 3, 4], (30, 1)), axis=1).ravel()
    good = target + rng.normal(0, 0.5, 120)
    predictors = [
        Predictor("a", "model", {"x": good}, in_points=True),
        Predictor("b", "judge", {"x": rng.random(120)}, in_points=True),
        Predictor("c", "judge", {"x": good + rng.normal(0, 0.2, 120)}, in_points=True),
        Predictor("constant", "baseline", any_target=np.ones(120)),
    ]
    comparison = Comparison(table, predictors, DocumentBootstrap(table.document_P, 200))
    result = comparison.graded("x", target)
    paired = {row["name"]: row["paired"]["pairs"] for row in result["paired"]}
    assert list(paired) == ["a minus b", "a minus c", "b minus c"]
    assert paired["a minus b"]["low"] > 0 > paired["b minus c"]["high"]
    assert paired["a minus c"]["low"] < 0 < paired["a minus c"]["high"]
    assert "judge minus judge" in terminal_table(result)
    chosen = comparison.preferred(decided_pairs(table, target))
    assert chosen["paired"] == []  # none of them has a reward
    assert Comparison(table, predictors[:1], comparison.bootstrap).graded("x", target)["paired"] == []


def test_length_bins_cover_every_prompt_once():
    lengths = np.array([0.0, 999, 1000, 5000, 1e6])
    bins = length_bins(lengths)
    assert np.sum(list(bins.values()), axis=0).tolist() == [1] * 5
    assert "128k+" in bins


def test_label_columns_line_up_and_gaps_are_nan():
    table = table_of([2, 1])
    label = Label(
        prompt_id="p1", response_id="0", scores={"faithfulness": 7.0}, reward=None, status="partial"
    )
    found = table.from_labels({("p1", "0"): label}, "faithfulness")
    assert np.isnan(found[:2]).all()
    assert found[2] == 7.0
    assert np.isnan(table.from_labels({("p1", "0"): label}, "reward")).all()
