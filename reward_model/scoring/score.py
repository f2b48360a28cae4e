"""`reward-model score`: every answer of a prompts file gets `scores` and a `reward`, without the judge.

In: a reward model and prompts with responses (JSONL or Parquet, read as a stream). Out: the same prompts in the
same order, and beside them `FILE.run.yaml` and `FILE.summary.json` (tokens, seconds, counts).

Answers marked `empty` have nothing to score and get
nulls; so do answers over the window when the user chose to skip them, which are then marked `over_window`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer

from judge_pipeline.common.progress import Progress
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import JsonlAppender, read_prompts, write_text
from judge_pipeline.common.records import SCORE_RANGE, Prompt
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.common.weighting import weighted_reward
from judge_pipeline.common.window import over_window
from reward_model.modeling.model import MANIFEST, Manifest, read_manifest
from reward_model.modeling.prompt_format import PromptRenderer
from reward_model.scoring.engine import Array, Engine, make_engine, reward_weights
from reward_model.scoring.explain import explained_text, make_explainer, sample, write_notes
from reward_model.scoring.resume import (
    OVER_WINDOW,
    Summary,
    done_before,
    finalise,
    is_empty,
    part_file,
    resumed_summary,
    scorable,
    summary_file,
)
from reward_model.scoring.score_config import ScoreConfig
from reward_model.shared_prefix.layout import EncodedPrompt
from reward_model.training.guards import SCORING_KNOBS, explain_out_of_memory

VLLM_PASSES = 32
"""Token budgets handed to vLLM at a time; what a killed run scores again is at most this much."""


def score_file(config: ScoreConfig) -> Summary:
    """Score a file; returns the summary that lies beside it.

    Raises:
        UserError, DataError: bad input; what was scored is kept.
    """
    quiet_libraries()
    manifest = read_manifest(config.model)
    weights = reward_weights(config, manifest)
    run_file = Path(f"{config.output}.run.yaml")
    begun = config.output.is_file() or part_file(config).is_file()
    if config.overflow == "error" and (not begun or config.existing == "replace"):
        _refuse_overflow(config, manifest)  # before anything is written; a resumed run has been through it
    resuming = prepare_run(
        config.output,
        config,
        "reward-model score",
        config.existing,
        [config.prompts, config.model / MANIFEST],
        run_file=run_file,
    )
    part = part_file(config)
    if not resuming:
        part.unlink(missing_ok=True)
    wanted = {prompt.id for prompt in read_prompts(config.prompts, need_responses=True)}
    summary = resumed_summary(config)
    done = done_before(part, config.output, summary)
    if wanted <= done and not part.is_file():
        print(f"{config.output} holds all {len(wanted)} prompts scored: nothing to do")
        return summary
    with explain_out_of_memory("loading the model", SCORING_KNOBS):
        engine = make_engine(config)
    summary.reads = engine.reads
    started, seconds, tokens = time.monotonic(), summary.seconds, summary.tokens_read
    try:
        with explain_out_of_memory("scoring", SCORING_KNOBS), JsonlAppender(part) as file:
            _score_all(config, engine, manifest, weights, (done, len(wanted)), file, summary)
    finally:
        summary.seconds = round(seconds + time.monotonic() - started, 3)
        summary.tokens_read = tokens + engine.tokens_read
        write_text(summary_file(config), json.dumps(asdict(summary), indent=2) + "\n")
        engine.close()
    finalise(part, config.output)
    return summary


def _refuse_overflow(config: ScoreConfig, manifest: Manifest) -> None:
    """Look at every prompt before the first is scored, so that a run does not end in an error after hours."""
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(config.model), manifest.prompt_format)

    def length(prompt: Prompt) -> int:
        texts = [item.text for item in prompt.responses if not is_empty(item)]
        # A token is at least one byte long, so short texts need not be tokenised to be known to fit.
        sizes = [len(text.encode()) for text in (prompt.context, prompt.question)]
        sizes.append(max((len(text.encode()) for text in texts), default=0))
        if not texts or sum(sizes) + FORMAT_TOKENS < manifest.max_length:
            return 0
        return renderer.encode(prompt.context, prompt.question, texts).shape.longest

    over_window(
        ((prompt.id, length(prompt)) for prompt in read_prompts(config.prompts)),
        manifest.max_length,
        "error",
        hint="leave them without scores with --overflow skip, or train with a longer window (--rope-factor)",
    )


FORMAT_TOKENS = 256  # more than any chat template puts around a prompt and an answer


def _score_all(
    config: ScoreConfig,
    engine: Engine,
    manifest: Manifest,
    weights: dict[str, float],
    known: tuple[set[str], int],
    file: JsonlAppender,
    summary: Summary,
) -> None:
    """Score what is not `known[0]` (done already) of `known[1]` prompts, group by group."""
    done, total = known
    explainer = make_explainer(config, engine)
    started = time.monotonic()
    with Progress(total, "scoring", "prompts", done=len(done)) as progress:
        todo = (prompt for prompt in read_prompts(config.prompts) if prompt.id not in done)
        # vLLM makes its own batches and wants many prompts to make them from.
        at_a_time = config.token_budget * (VLLM_PASSES if config.engine == "vllm" else 1)
        for group in _groups(todo, engine, manifest.max_length, at_a_time):
            encoded = [item for _, item in group if item is not None]
            if explainer:
                texts = [explained_text(prompt) for prompt, item in group if item is not None]
                read = explainer.explain(list(zip(texts, encoded, strict=True)), config.token_budget)
                points, notes = iter([one for one, _ in read]), iter([one for _, one in read])
            else:
                points, notes = iter(engine.score_encoded(encoded, config.token_budget)), iter([])
            for prompt, item in group:
                if explainer:
                    write_notes(prompt, next(notes) if item else [])
                fill(prompt, next(points) if item else (), manifest.dimensions, weights)
                file.append(prompt)
                summary.count(prompt)
                shapes = engine.readings(item) if item else []
                summary.tokens_one_by_one += sum(shape.total_one_by_one for shape in shapes)
                rate = engine.tokens_read / max(time.monotonic() - started, 1e-9)
                progress.update(1, **{"tokens/s": f"{rate:,.0f}"})


Group = list[tuple[Prompt, EncodedPrompt | None]]


def _groups(prompts: Iterable[Prompt], engine: Engine, window: int, token_budget: int) -> Iterator[Group]:
    """Neighbours that share a pass: as many as the budget holds. None stands for a prompt with nothing to score."""
    group: Group = []
    used = 0
    for prompt in prompts:
        encoded = _encode(prompt, engine, window)
        size = encoded.shape.total if encoded else 0
        if group and used + size > token_budget:
            yield group
            group, used = [], 0
        group.append((prompt, encoded))
        used += size
    if group:
        yield group


def _encode(prompt: Prompt, engine: Engine, window: int) -> EncodedPrompt | None:
    """Token ids of the answers that can be scored; those over the window (met only where skipping was chosen)
    are marked, and an old mark that no longer holds is taken off."""
    for response in prompt.responses:
        if OVER_WINDOW in response.flags:
            response.flags = [flag for flag in response.flags if flag != OVER_WINDOW]
    there = [item for item in prompt.responses if not is_empty(item)]
    if not there:
        return None
    encoded = engine.encode(prompt.context, prompt.question, [item.text for item in there])
    fits = encoded.fitting(window)
    for response, fit in zip(there, fits, strict=True):
        if not fit:
            response.flags = [*response.flags, OVER_WINDOW]
    return encoded.keep(fits)


def fill(
    prompt: Prompt, points_N_D: Iterable[Array], dimensions: Sequence[str], weights: dict[str, float]
) -> None:
    """Write scores and rewards into a prompt's responses; those that were not scored get nulls.

    Scores are kept within 0–10, as records demand; the reward is the mean of what the model said, so that two
    answers beyond the end of the scale keep their order.
    """
    rows, (low, high) = iter(points_N_D), SCORE_RANGE
    for response in prompt.responses:
        if scorable(response):
            row = next(rows)
            # fp32 carries about 1e-6 points; more digits would only make files longer.
            points = {name: round(float(value), 6) for name, value in zip(dimensions, row, strict=True)}
            response.scores = {name: min(max(value, low), high) for name, value in points.items()}
            reward = weighted_reward(dict(points), weights)
            response.reward = None if reward is None else round(reward, 6)
        else:
            response.scores = dict.fromkeys(dimensions)
            response.reward = None


def run(config: ScoreConfig) -> int:
    """The command: score, then say what it took."""
    summary = score_file(config)
    rate = summary.tokens_read / summary.seconds if summary.seconds else 0.0
    saved = summary.tokens_one_by_one - summary.tokens_read
    print(
        f"{summary.scored} of {summary.responses} answers to {summary.prompts} prompts scored in {config.output}"
        + (f"; {summary.empty} empty" if summary.empty else "")
        + (f"; {summary.over_window} over the window left without scores" if summary.over_window else "")
    )
    print(
        f"{summary.tokens_read:,} tokens in {summary.seconds:.1f} s ({rate:,.0f} tokens/s); one by one it would have "
        f"been {summary.tokens_one_by_one:,} tokens ({saved:,} saved)"
        + (f"; {summary.reads}" if summary.reads else "")
    )
    if config.explain:
        print(sample(config.output))
    return 0
