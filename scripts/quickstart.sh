#!/usr/bin/env bash
# The whole idea once, end to end, on real parts: a reward model learns from a capable judge's labels and is measured on
# documents it had not read; a real model answers, a judge labels, the reward model scores, pairs, DPO, and a report.
# Run again, it goes on where it stopped. No model hub is used unless a flag names a hub model.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: scripts/quickstart.sh [options]
  --model NAME        model that answers, and base of the reward model and DPO (default: smollm2, embedded)
  --judge-model NAME  model that judges (default: smollm2, embedded, in this process)
  --judge-url URL     OpenAI-compatible endpoint of the judge, e.g. http://localhost:8000/v1 (default: none)
  --judge-key-env VAR environment variable with the endpoint's key (default: OPENAI_API_KEY)
  --output DIR        where everything goes (default: runs/quickstart)
  --answers N         answers sampled for each prompt (default: 4)
  --seed N            of the reward model's folds (default: 0)
  --restart           throw the run in DIR away and begin anew
TEXT
}

model=smollm2 judge_model=smollm2 judge_url="" judge_key_env=OPENAI_API_KEY run=runs/quickstart answers=4 seed=0 restart=""
while [ $# -gt 0 ]; do
    case "$1" in
    --model) model="$2" && shift 2 ;;
    --judge-model) judge_model="$2" && shift 2 ;;
    --judge-url) judge_url="$2" && shift 2 ;;
    --judge-key-env) judge_key_env="$2" && shift 2 ;;
    --output) run="$2" && shift 2 ;;
    --answers) answers="$2" && shift 2 ;;
    --seed) seed="$2" && shift 2 ;;
    --restart) restart=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && printf "\nunknown option '%s'\n" "$1" >&2 && exit 2 ;;
    esac
done

. scripts/environment.sh
make_environment demo
export PATH="$VENV/bin:$PATH" TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
[ -t 2 ] || export TQDM_DISABLE=1 # bars of libraries are noise in a log; our own progress prints plain lines there
case "$model$judge_model" in # only a model the user named may be looked up on a hub
smollm2smollm2) export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 ;;
esac

[ -z "$restart" ] || rm -rf "$run"
mkdir -p "$run/.stages"

# stage NAME "what it does" COMMAND…: skipped when the same command has finished here before.
stage() {
    local name="$1" what="$2" stamp="$run/.stages/$1" line status=0
    shift 2
    line="$(printf '%s\n' "$@" | cksum)"
    if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$line" ]; then
        say "[$name] done before: $what"
        return
    fi
    say "[$name] $what"
    local begun=$SECONDS
    "$@" || status=$?
    # 3 says that some answers lack a score: they are listed in the report, and the run goes on.
    [ "$status" -eq 0 ] || [ "$status" -eq 3 ] || exit "$status"
    printf '%s\n%s\n' "$line" "$((SECONDS - begun))" >"$stamp"
}

judge=(--judge.model "$judge_model")
if [ -n "$judge_url" ]; then
    judge+=(--judge.base-url "$judge_url" --judge.api-key-env "$judge_key_env")
elif [ "$judge_model" = smollm2 ]; then
    # A 135M judge on two cores: no examples (it would copy them), short analyses and few statements.
    judge+=(--statements-per-call 6 --few-shot 0 --analysis-chars 160 --max-statements 4 --max-key-points 3
        --item-chars 160 --max-tokens 640)
fi

# A 135M judge's labels are not worth learning from: beside it, the reward model learns from those of a capable judge
# that come with this repository. A judge of your own labels the same documents and teaches it itself.
demo=scripts/demo/judged taught=scripts/demo/judged/labels.jsonl beside=()
if [ "$judge_model$judge_url" != smollm2 ]; then
    stage teach "your judge labels the 36 documents that come with labels" \
        judge-pipeline label "$demo/prompts.jsonl" --output "$run/labels_yours" "${judge[@]}"
    taught="$run/labels_yours" beside=(--second-labels "$demo/labels.jsonl")
fi
stage deal "34 labelled documents to learn from, two to show" \
    python -m scripts.demo.prompts deal "$taught" "$run/demo"
stage changed "answers in which a name, a date or a figure is changed, or a sentence denied" \
    reward-model augment "$run/demo/learn.jsonl" --output "$run/changed.jsonl" --existing replace \
    --dimensions faithfulness --answers 3 --no-neutral
stage train "a reward model learns from a judge's labels" \
    reward-model train "$run/demo/learn_labels.jsonl" --prompts "$run/demo/learn.jsonl" --augment "$run/changed.jsonl" \
    --base-model "$model" --output "$run/reward_model" --method probe --folds 5 --augment-weight 0.5 \
    --token-budget 4096 --allow-constant --seed "$seed"
stage evaluate "the reward model beside the judge, on documents the fit had not read, and without documents" \
    reward-model evaluate "$run/reward_model" "$run/demo/learn_labels.jsonl" --prompts "$run/demo/learn.jsonl" \
    --folds --contrasts "$run/changed.jsonl" "${beside[@]}" --output "$run/fidelity" --likelihood off
stage explain "two documents that were kept out, sentence by sentence" \
    reward-model score "$run/reward_model" "$run/demo/shown.jsonl" --output "$run/explained.jsonl" --explain
stage prompts "six questions about the documentation Python carries" \
    python -m scripts.demo.prompts build "$run/prompts.jsonl"
stage sample "$answers answers a prompt" \
    dpo sample "$run/prompts.jsonl" --model "$model" --output "$run/answers.jsonl" --n "$answers" --max-new-tokens 96
stage split "two prompts for the judge" \
    python -m scripts.demo.prompts split "$run/answers.jsonl" "$run/to_label.jsonl"
stage label "the judge labels two prompts" \
    judge-pipeline label "$run/to_label.jsonl" --output "$run/labels" "${judge[@]}"
stage score "the reward model scores the new answers, without the judge" \
    reward-model score "$run/reward_model" "$run/answers.jsonl" --output "$run/scored.jsonl"
stage pairs "best against worst" \
    dpo pairs "$run/scored.jsonl" --output "$run/pairs.jsonl" --min-responses 2 --keep-flagged truncated --existing replace
stage dpo "a short DPO run" \
    dpo train "$run/pairs.jsonl" --model "$model" --output "$run/dpo" --learning-rate 5e-5 \
    --eval-fraction 0.34 --max-steps 3 --gradient-accumulation-steps 1 --gradient-checkpointing
say "[report] one page for the whole run"
python -m scripts.demo.report "$run"
