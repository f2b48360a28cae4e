"""Which sentences of an answer does the document not support, and where did the model look: `score --explain` measured.

In: a folder with prompts, a judge's labels with evidence, and StorySumm (sentence labels by people). Out, in explain.json
beside this file, on documents that the readout was not fitted to (folds over documents; StorySumm: all of it new):

- sentences told apart, supported or not: AUC with intervals over documents, balanced accuracy with a threshold chosen
  on other documents, beside bigram support of the sentence, MiniLM evidence similarity and the model's own mean
  log-probability of the sentence;
- the part of the document a sentence looks at: how often the first (or one of the first three) is the passage that the
  judge named in its verdict, or the one that holds the source of a key point that the sentence covers; by attention, by
  cosine of centred states, by MiniLM, by shared words.

Documents are read once, several minutes on a core; what was read lies under --work, so a run that stopped goes on. The
text of the data never enters the results.

    python scripts/bench/explain.py --data DIR [--work runs/explain] [--limit N] [--base-model smollm2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from judge_pipeline.common.records import Response
from judge_pipeline.documents.retrieval import SentenceEmbedder
from judge_pipeline.documents.words import terms
from judge_pipeline.statistics.baselines import bigram_support
from judge_pipeline.statistics.render import markdown
from judge_pipeline.statistics.table import build_table
from reward_model.modeling.features import LayerReader, decoder_layers, mean_token, passes
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.modeling.readout import VIEWS, View, view_features
from reward_model.modeling.ridge import Rows, choose_penalties, fit_rows, fold_predictions
from reward_model.modeling.span_states import attention_to
from reward_model.modeling.support import token_spans
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.interface import listen_to_attention, unwrap
from reward_model.training.probe import fold_numbers
from reward_model.training.support import (
    SUPPORTED,
    attention_layer,
    best_threshold,
    held_out_flags,
    support_layers,
)
from scripts.bench.evidence_common import environment, write_result
from scripts.bench.explain_cases import Case, judged_cases, story_cases

Array = np.ndarray
BOOTSTRAPS = 500
READ = ("document", "withheld", "log-probability")
"""What is read of every sentence."""


def arguments() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", default="qa_feedback.jsonl")
    parser.add_argument("--labels", default="qa_feedback_judged.jsonl")
    parser.add_argument("--stories", default="storysumm.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/explain"))
    parser.add_argument("--limit", type=int, help="labelled prompts, drawn by their ids")
    parser.add_argument("--base-model", default="smollm2")
    return parser.parse_args()


@torch.no_grad()
def read_case(backbone: Backbone, case: Case, layers: list[int], watched: int) -> dict[str, Array]:
    """All that is read of a prompt: (document, withheld) states, log-probabilities, attention and closeness."""
    prompt, renderer, model = case.prompt, backbone.renderer, backbone.model
    texts = [response.text for response in prompt.responses]
    encoded = renderer.encode(prompt.context, prompt.query, texts)
    spans = [
        [span or (0, 1) for span in token_spans(renderer.answer_places(text), own)]
        for text, own in zip(texts, case.sentences, strict=True)
    ]
    parts = [
        span or (0, 1)
        for span in token_spans(renderer.context_places(prompt.context, prompt.query), case.segments)
    ]
    attention: list[Array] = []
    found: dict[str, Array] = {}
    inside: list[bool] = [False]
    wanted: list[tuple[int, int]] = []
    layer = decoder_layers(model)[watched - 1]

    def listen(query: Any, key: Any, plan: Any, scale: float) -> None:
        if inside[0]:
            attention.extend(attention_to(parts, span, query, key, plan, scale).numpy() for span in wanted)

    handles = [
        layer.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)),
        layer.register_forward_hook(lambda *_: inside.__setitem__(0, False)),
    ]
    for side, one in (("document", encoded), ("withheld", encoded.withheld())):
        reader = LayerReader(model, [*layers, watched], mean_token)
        kept: list[torch.Tensor] = []
        with reader.attached(), listen_to_attention(listen):
            ((forward, answers),) = list(passes(model, [one], one.shape.total, True))
            absolute = [
                (start + a, start + b) for (start, _), own in zip(answers, spans, strict=True) for a, b in own
            ]
            wanted = absolute if side == "document" else []

            def run(forward: Any = forward, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                kept.append(forward())
                return kept[0]

            states = reader.read(run, [*absolute, *(parts if side == "document" else [])])
        found[side] = states[: len(absolute), :-1].half().numpy()
        if side == "document":
            ids = np.concatenate([one.prefix, *one.answers])
            found["log-probability"] = _likelihood(model, kept[0], ids, absolute, answers, len(one.prefix))
            found["cosine"] = _closeness(states[: len(absolute), -1], states[len(absolute) :, -1])
            found["attention"] = np.stack(attention)
    for handle in handles:
        handle.remove()
    return found


def _likelihood(model: Any, hidden: Any, ids: Array, spans: Any, answers: Any, prefix: int) -> Array:
    """The model's mean log-probability of each sentence's tokens; its embeddings are its LM head too."""
    head = unwrap(model).get_input_embeddings().weight
    first = {start: prefix - 1 for start, _ in answers}
    means = []
    for start, stop in spans:
        before = torch.tensor([first.get(token, token - 1) for token in range(start, stop)])
        logs = (hidden[before] @ head.T).float().log_softmax(-1)
        means.append(logs[torch.arange(stop - start), torch.from_numpy(ids[start:stop]).long()].mean().item())
    return np.array(means)


def _closeness(sentences: torch.Tensor, segments: torch.Tensor) -> Array:
    """Cosine (S, G) of states, both centred at the document's mean."""
    centre = segments.mean(0)
    a, b = sentences - centre, segments - centre
    return (torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T).numpy()


def read_all(
    args: argparse.Namespace, cases: Sequence[Case], backbone: Backbone, layers: list[int], watched: int
) -> list[dict[str, Array]]:
    """Every case, from the cache where it lies there."""
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for number, case in enumerate(cases, 1):
        file = args.work / f"{args.base_model.replace('/', '_')}-{case.prompt.id}.npz"
        if not file.is_file():
            np.savez(file.with_suffix(".tmp.npz"), **read_case(backbone, case, layers, watched))  # type: ignore[arg-type]
            file.with_suffix(".tmp.npz").rename(file)
            print(f"read {number}/{len(cases)}: {case.prompt.id}", flush=True)
        with np.load(file) as stored:
            found.append(dict(stored))
    return found


def free_baselines(cases: Sequence[Case], embedder: SentenceEmbedder) -> tuple[dict[str, Array], list[Array]]:
    """What costs nothing: for each sentence two baselines, for each case MiniLM's closeness (S, G) to the segments."""
    bigrams, nearest, closeness = [], [], []
    for case in cases:
        texts = [
            r.text[s.start : s.end]
            for r, own in zip(case.prompt.responses, case.sentences, strict=True)
            for s in own
        ]
        prompt = case.prompt.model_copy(
            update={
                "responses": [Response(id=str(i), text=text) for i, text in enumerate(texts)],
                "preferences": [],
            }
        )
        bigrams.append(bigram_support(build_table([prompt])))
        parts = embedder.embed([case.prompt.context[s.start : s.end] for s in case.segments])
        close = embedder.embed(texts) @ parts.T
        closeness.append(close)
        nearest.append(close.max(1))
    return {
        "bigram support": np.concatenate(bigrams),
        "evidence similarity": np.concatenate(nearest),
    }, closeness


def with_interval(truth: Array, value: Array, document: Array, called: Array) -> dict[str, Any]:
    """AUC and balanced accuracy, with 95% intervals over documents."""
    generator = np.random.default_rng(0)
    rows_of = [np.flatnonzero(document == name) for name in np.unique(document)]
    samples = []
    for _ in range(BOOTSTRAPS):
        rows = np.concatenate([rows_of[i] for i in generator.integers(0, len(rows_of), len(rows_of))])
        if len(set(truth[rows].tolist())) == 2:
            samples.append(
                (roc_auc_score(truth[rows], value[rows]), balanced_accuracy_score(truth[rows], called[rows]))
            )
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    point = roc_auc_score(truth, value), balanced_accuracy_score(truth, called)
    return {
        name: {"value": round(float(p), 4), "low": round(float(a), 4), "high": round(float(b), 4)}
        for name, p, a, b in zip(("auc", "balanced_accuracy"), point, low, high, strict=True)
    }


def hits(score_C: Sequence[Array], gold_C: Sequence[Sequence[set[int]]]) -> dict[str, Any]:
    """How often the segment with the highest score is right, and one of the best three."""
    first, three = [], []
    for scores, gold in zip(score_C, gold_C, strict=True):
        for row, wanted in zip(scores, gold, strict=True):
            if wanted and len(row) > 2:
                order = np.argsort(-row)
                first.append(int(order[0]) in wanted)
                three.append(bool({*order[:3].tolist()} & wanted))
    if not first:
        return {"sentences": 0}
    return {
        "sentences": len(first),
        "hit@1": round(float(np.mean(first)), 4),
        "hit@3": round(float(np.mean(three)), 4),
    }


def _shared_words(case: Case) -> Array:
    """Search terms (S, G) that a sentence shares with each segment, for the root of the segment's length."""
    parts = [case.prompt.context[one.start : one.end] for one in case.segments]
    held = [(set(terms(text)), len(text) ** 0.5) for text in parts]
    own = [
        set(terms(response.text[one.start : one.end]))
        for response, told in zip(case.prompt.responses, case.sentences, strict=True)
        for one in told
    ]
    return np.array([[len(mine & there) / root for there, root in held] for mine in own])


def localisation(
    cases: Sequence[Case], read: Sequence[dict[str, Array]], minilm: Sequence[Array]
) -> dict[str, Any]:
    """Hit rates against the judge's named passages and against the sources of key points."""
    ways = {
        "attention": [one["attention"] for one in read],
        "cosine of states": [one["cosine"] for one in read],
        "MiniLM": list(minilm),
        "shared words": [_shared_words(case) for case in cases],
        "first segment": [-np.tile(np.arange(m.shape[1]), (len(m), 1)) for m in minilm],
    }
    golds = {
        "named by the judge": [case.flat(case.named) for case in cases],
        "source of a key point": [case.flat(case.sources) for case in cases],
    }
    return {gold: {way: hits(scores, rows) for way, scores in ways.items()} for gold, rows in golds.items()}


@dataclass(frozen=True)
class Side:
    """Sentences of one data set; S of them."""

    states: dict[str, torch.Tensor]
    """document, withheld: (S, L, H)."""
    truth: Array
    """Whether each is supported."""
    document: Array
    free: dict[str, Array]
    """Baselines."""


def side_of(
    cases: Sequence[Case], read: Sequence[dict[str, Array]], free: dict[str, Array]
) -> tuple[Side, Rows]:
    """The sentences whose truth is known, and as rows to fit in folds over documents."""
    support = np.array(
        [np.nan if s.support is None else s.support for c in cases for s in c.flat(c.sentences)]
    )
    known = np.isfinite(support)
    number = np.array([i for i, c in enumerate(cases) for _ in c.flat(c.sentences)])[known]
    names = [case.prompt.document_id for case in cases]
    joined = {name: np.concatenate([one[name] for one in read])[known] for name in read[0] if name in READ}
    side = Side(
        {name: torch.from_numpy(joined[name].astype(np.float32)) for name in ("document", "withheld")},
        support[known] >= SUPPORTED,
        np.array(names)[number],
        {name: value[known] for name, value in free.items()} | {"log-probability": joined["log-probability"]},
    )
    order, targets = torch.arange(len(number)), torch.from_numpy(support[known])[:, None]
    prompt = torch.from_numpy(number)
    alone = torch.full_like(order, -1)
    return side, Rows(order, alone, targets, torch.ones_like(targets), prompt, fold_numbers(names, 0)[prompt])


def measure_readout(
    view: str, judged: Side, stories: Side, rows: Rows, layers: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of a view's readout on the judged sentences out of their fold, and on the stories.

    Layer and penalty are chosen on the same folds, as in training: four layers and one number.
    """

    def features(side: Side, place: int) -> torch.Tensor:
        document, withheld = side.states["document"][:, place], side.states["withheld"][:, place]
        return withheld if view == "withheld" else view_features(cast(View, view), document, withheld)

    choices = [choose_penalties(rows, features(judged, place)) for place in range(len(layers))]
    place = int(np.argmax([choice.score for choice in choices]))
    own, penalties = features(judged, place), choices[place].penalties
    predicted = fold_predictions(rows, own, penalties)[0, :, 0].numpy()
    told = fit_rows(rows, own, penalties)(features(stories, place))[:, 0].numpy()
    found = measure(predicted, told, judged, stories, rows.fold_R.numpy())
    return found[0] | {"layer": layers[place]}, found[1]


def measure(
    judged_S: Array, stories_S: Array, judged: Side, stories: Side, fold_S: Array
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of one value on both sides; thresholds come from judged sentences of other documents."""
    called = held_out_flags(judged_S, judged.truth, fold_S)
    flagged = stories_S >= best_threshold(judged_S, judged.truth)
    return (
        with_interval(judged.truth, judged_S, judged.document, called),
        with_interval(stories.truth, stories_S, stories.document, flagged),
    )


def main() -> None:
    """Read, fit by folds, measure."""
    args = arguments()
    torch.set_num_threads(1)
    backbone = load_backbone_for_rm(args.base_model, dtype=torch.bfloat16)
    backbone.model.eval()
    prepare_shared_prefix(backbone.model)
    layers = support_layers(backbone.model, None)
    watched = attention_layer(backbone.model, layers[-1])
    places = backbone.renderer.context_places
    cases = {
        "judged": judged_cases(args.data / args.labels, args.data / args.prompts, args.limit, places),
        "storysumm": story_cases(args.data / args.stories, places),
    }
    read = {name: read_all(args, own, backbone, layers, watched) for name, own in cases.items()}
    embedder = SentenceEmbedder("minilm")
    free = {name: free_baselines(own, embedder) for name, own in cases.items()}
    judged, rows = side_of(cases["judged"], read["judged"], free["judged"][0])
    stories, _ = side_of(cases["storysumm"], read["storysumm"], free["storysumm"][0])
    figures = {
        f"support readout, {view}": measure_readout(view, judged, stories, rows, layers)
        for view in (*VIEWS, "withheld")
    }
    for name, value in judged.free.items():
        figures[name] = measure(value, stories.free[name], judged, stories, rows.fold_R.numpy())
    result: dict[str, Any] = {"base_model": args.base_model, "layers": layers, "attention_layer": watched}
    for number, (name, side) in enumerate((("judged", judged), ("storysumm", stories))):
        table = {way: found[number] for way, found in figures.items()}
        cells = [[way, _cell(one["auc"]), _cell(one["balanced_accuracy"])] for way, one in table.items()]
        print(f"\n{name}\n{markdown(['', 'AUC', 'balanced accuracy'], cells)}")
        result[name] = {
            "prompts": len(cases[name]),
            "documents": len(np.unique(side.document)),
            "sentences": len(side.truth),
            "unsupported": int((~side.truth).sum()),
            "rows": table,
        }
    result["localisation"] = localisation(cases["judged"], read["judged"], free["judged"][1])
    for gold, ways in result["localisation"].items():
        print(f"\n{gold}: {ways}")
    write_result(Path(__file__).with_suffix(".json"), result | environment())


def _cell(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
