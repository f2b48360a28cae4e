"""Which sentences of an answer does the document not support, and where did the model look: `score --explain` measured.

In: a folder with prompts, a judge's labels with evidence, and StorySumm (sentence labels by people). Out, in explain.json
beside this file, on documents that the readout was not fitted to (folds over documents; StorySumm: all of it new):

- sentences told apart, supported or not: AUC with intervals over documents, balanced accuracy with a threshold chosen
  on other documents, beside bigram support of the sentence, MiniLM evidence similarity and the model's own mean
  log-probability of the sentence;
- the part of the document a sentence looks at: how often the first (or one of the first three) is the passage that the
  judge named in its verdict, or the one that holds the source of a key point that the sentence covers; by attention, by
  cosine of centred states, by MiniLM.

Documents are read once, several minutes on a core; what was read lies under --work, so a run that stopped goes on. The
text of the data never enters the results.

    python scripts/bench/explain.py --data DIR [--work runs/explain] [--limit N] [--base-model smollm2]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from judge_pipeline.common.record_files import read_labels, read_prompts
from judge_pipeline.common.records import Label, Prompt, Response
from judge_pipeline.documents.chunking import Span as TextSpan
from judge_pipeline.documents.chunking import cut
from judge_pipeline.documents.retrieval import SentenceEmbedder
from judge_pipeline.statistics.baselines import bigram_support
from judge_pipeline.statistics.render import markdown
from judge_pipeline.statistics.table import build_table
from reward_model.data.evidence import (
    Sentence,
    align,
    load_evidence,
    sentence_targets,
)
from reward_model.data.splits import hash_fraction
from reward_model.modeling.features import LayerReader, decoder_layers, mean_token, passes
from reward_model.modeling.fold_ridge import Rows, choose_penalties, fit_rows, fold_predictions
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.modeling.readout import VIEWS, view_features
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

Array = np.ndarray
NAMED = re.compile(r"(?:\bP|[Pp]assages? )(\d+)")
"""How the judge names the passage it relies on; passages are numbered in the document's order."""
PASSAGES = 5
"""Passages a verdict saw: in a document of no more than these, the number is that of the segment."""
BOOTSTRAPS = 500


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


@dataclass(frozen=True)
class Case:
    """A prompt with the sentences of its answers, and the parts of its document."""

    prompt: Prompt
    sentences: list[list[Sentence]]
    """Of each answer; support is the truth, None where nothing is known."""
    segments: list[TextSpan]
    named: list[list[set[int]]]
    """For each sentence the segments that the judge named for it."""
    sources: list[list[set[int]]]
    """For each sentence the segments that hold a key point it covers."""

    def flat(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """What stands for each sentence, over all answers."""
        return [one for row in rows for one in row]


def judged_cases(args: argparse.Namespace, places: Mapping[str, Any]) -> list[Case]:
    """Prompts that the judge labelled, with what its evidence says of their sentences."""
    evidence = load_evidence(args.data / args.labels)
    labels = {(row.prompt_id, row.response_id): row for row in read_labels(args.data / args.labels)}
    known = {key[0] for key in labels}
    prompts = [prompt for prompt in read_prompts(args.data / args.prompts) if prompt.id in known]
    prompts = sorted(prompts, key=lambda prompt: hash_fraction(prompt.id, 0))[: args.limit]
    cases = []
    for prompt in prompts:
        segments = _segments(
            prompt, [labels[prompt.id, r.id] for r in prompt.responses if (prompt.id, r.id) in labels], places
        )
        sentences, named, sources = [], [], []
        for response in prompt.responses:
            label, own = labels.get((prompt.id, response.id)), evidence.get((prompt.id, response.id))
            told = sentence_targets(response.text, own.statements if own else ())
            sentences.append(told)
            points = [one for one in (own.key_points if own else ()) if one.covered and one.span]
            found: list[set[int]] = [set() for _ in told]
            for point, rows in zip(
                points, align(response.text, told, [one.text for one in points]), strict=True
            ):
                middle = sum(point.span or ()) / 2
                inside = [number for number, one in enumerate(segments) if one.start <= middle < one.end]
                for row in rows:
                    found[row].update(inside)
            sources.append(found)
            named.append(_named(response, label, told, len(segments)))
        cases.append(Case(prompt, sentences, segments, named, sources))
    return cases


def _segments(prompt: Prompt, labels: Sequence[Label], places: Mapping[str, Any]) -> list[TextSpan]:
    """The judge's own segments where its evidence names all of them, else those that `--explain` makes."""
    seen = {
        (span["start"], span["end"])
        for label in labels
        for row in (label.evidence.get("faithfulness") or {}).get("statements") or []
        for span in row["spans"]
    }
    spans = sorted(seen)
    joined = all(a[1] == b[0] for a, b in pairwise(spans))
    if spans and joined and spans[0][0] == 0 and spans[-1][1] == len(prompt.context):
        return [TextSpan(*span) for span in spans]
    return cut(prompt.context, [p for p in places["context"](prompt.context, prompt.query) if p[1] >= 0], 128)


def _named(
    response: Response, label: Label | None, told: Sequence[Sentence], segments: int
) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in told]
    rows = ((label.evidence.get("faithfulness") or {}).get("statements") or []) if label else []
    for row, places in zip(rows, align(response.text, told, [row["text"] for row in rows]), strict=True):
        numbers = {int(text) for text in NAMED.findall(row["analysis"] or "")}
        clear = row["verdict"] == "full" and len(numbers) == 1 and len(row["spans"]) == segments <= PASSAGES
        if clear and max(numbers) <= segments:
            for place in places:
                found[place].update(number - 1 for number in numbers)
    return found


def story_cases(path: Path, places: Mapping[str, Any]) -> list[Case]:
    """Summaries whose sentences people called faithful or not."""
    cases = []
    for prompt in read_prompts(path):
        sentences = []
        for response in prompt.responses:
            extra, at, told = response.model_extra or {}, 0, []
            for text, label in zip(extra["sentences"], extra["sentence_labels"], strict=True):
                start = response.text.index(text.strip(), at)
                at = start + len(text.strip())
                told.append(Sentence(start, at, float(label)))
            sentences.append(told)
        empty = [[set() for _ in told] for told in sentences]
        cases.append(Case(prompt, sentences, _segments(prompt, [], places), empty, empty))
    return cases


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
            np.savez(file.with_suffix(".tmp.npz"), **read_case(backbone, case, layers, watched))
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


def localisation(
    cases: Sequence[Case], read: Sequence[dict[str, Array]], minilm: Sequence[Array]
) -> dict[str, Any]:
    """Hit rates against the judge's named passages and against the sources of key points."""
    ways = {
        "attention": [one["attention"] for one in read],
        "cosine of states": [one["cosine"] for one in read],
        "MiniLM": list(minilm),
        "first segment": [-np.tile(np.arange(m.shape[1]), (len(m), 1)) for m in minilm],
    }
    golds = {
        "named by the judge": [case.flat(case.named) for case in cases],
        "source of a key point": [case.flat(case.sources) for case in cases],
    }
    return {gold: {way: hits(scores, rows) for way, scores in ways.items()} for gold, rows in golds.items()}


def main() -> None:
    """Read, fit by folds, measure."""
    args = arguments()
    torch.set_num_threads(1)
    backbone = load_backbone_for_rm(args.base_model, dtype=torch.bfloat16)
    backbone.model.eval()
    prepare_shared_prefix(backbone.model)
    layers = support_layers(backbone.model, None)
    watched = attention_layer(backbone.model, layers[-1])
    places = {"context": backbone.renderer.context_places}
    judged, stories = judged_cases(args, places), story_cases(args.data / args.stories, places)
    read, story_read = (read_all(args, cases, backbone, layers, watched) for cases in (judged, stories))
    embedder = SentenceEmbedder("minilm")
    free, minilm = free_baselines(judged, embedder)
    story_free, _ = free_baselines(stories, embedder)

    support = np.array(
        [s.support if s.support is not None else np.nan for c in judged for s in c.flat(c.sentences)]
    )
    known = np.isfinite(support)
    truth = support[known] >= SUPPORTED
    number = np.array([i for i, c in enumerate(judged) for _ in c.flat(c.sentences)])[known]
    names = [case.prompt.document_id for case in judged]
    folds = fold_numbers(names, 0)[torch.from_numpy(number)]
    document = np.array(names)[number]
    targets = torch.from_numpy(support[known])[:, None]
    order = torch.arange(len(truth))
    rows = Rows(
        order, torch.full_like(order, -1), targets, torch.ones_like(targets), torch.from_numpy(number), folds
    )

    story_truth = np.array([s.support for c in stories for s in c.flat(c.sentences)]) > 0.5
    story_document = np.array([c.prompt.document_id for c in stories for _ in c.flat(c.sentences)])

    def states(found: Sequence[dict[str, Array]], side: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([one[side] for one in found]).astype(np.float32))

    sides, story_sides = (
        (states(found, "document"), states(found, "withheld")) for found in (read, story_read)
    )
    keep = torch.from_numpy(known)
    tables: dict[str, dict[str, Any]] = defaultdict(dict)
    for view in (*VIEWS, "withheld"):
        best = None
        for place in range(len(layers)):
            one, other = sides[0][keep][:, place], sides[1][keep][:, place]
            features = other if view == "withheld" else view_features(view, one, other)
            choice = choose_penalties(rows, features)
            if best is None or choice.score > best[0].score:
                best = choice, features, place
        assert best is not None
        choice, features, place = best
        predicted = fold_predictions(rows, features, choice.penalties)[0, :, 0].numpy()
        called = held_out_flags(predicted, truth, folds.numpy())
        name = f"support readout, {view}"
        tables["judged"][name] = {"layer": layers[place], **with_interval(truth, predicted, document, called)}
        fitted, (a, b) = fit_rows(rows, features, choice.penalties), (side[:, place] for side in story_sides)
        value = fitted(b if view == "withheld" else view_features(view, a, b))[:, 0].numpy()
        called = value >= best_threshold(predicted, truth)
        tables["storysumm"][name] = with_interval(story_truth, value, story_document, called)
    free["log-probability"] = np.concatenate([one["log-probability"] for one in read])
    story_free["log-probability"] = np.concatenate([one["log-probability"] for one in story_read])
    for name, all_values in free.items():
        value = all_values[known]
        called = held_out_flags(value, truth, folds.numpy())
        tables["judged"][name] = with_interval(truth, value, document, called)
        cut_at = best_threshold(value, truth)
        tables["storysumm"][name] = with_interval(
            story_truth, story_free[name], story_document, story_free[name] >= cut_at
        )
    places_found = localisation(judged, read, minilm)
    for data, table in tables.items():
        print(f"\n{data}")
        print(
            markdown(
                ["", "AUC", "balanced accuracy"],
                [[name, _cell(f["auc"]), _cell(f["balanced_accuracy"])] for name, f in table.items()],
            )
        )
    for gold, ways in places_found.items():
        print(f"\n{gold}: {ways}")
    result = {
        "base_model": args.base_model,
        "layers": layers,
        "attention_layer": watched,
        "judged": {
            "prompts": len(judged),
            "documents": len(set(names)),
            "sentences": len(truth),
            "unsupported": int((~truth).sum()),
            "rows": tables["judged"],
        },
        "storysumm": {
            "documents": len(stories),
            "sentences": len(story_truth),
            "unsupported": int((~story_truth).sum()),
            "rows": tables["storysumm"],
        },
        "localisation": places_found,
        **environment(),
    }
    write_result(Path(__file__).with_suffix(".json"), result)


def _cell(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
