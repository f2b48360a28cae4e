#!/usr/bin/env bash
# The whole idea once, end to end, on real parts: real documents, a real model that answers, a judge that labels,
# a reward model trained on the labels, answers scored without the judge, pairs, DPO, and a report to look at.
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
  --restart           throw the run in DIR away and begin anew
TEXT
}

model=smollm2 judge_model=smollm2 judge_url="" judge_key_env=OPENAI_API_KEY run=runs/quickstart answers=4 restart=""
while [ $# -gt 0 ]; do
    case "$1" in
    --model) model="$2" && shift 2 ;;
    --judge-model) judge_model="$2" && shift 2 ;;
    --judge-url) judge_url="$2" && shift 2 ;;
    --judge-key-env) judge_key_env="$2" && shift 2 ;;
    --output) run="$2" && shift 2 ;;
    --answers) answers="$2" && shift 2 ;;
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
    judge+=(--statements-per-call 6 --few-shot 0 --analysis-chars 160 --max-statements 6 --max-key-points 3
        --item-chars 160 --max-tokens 640)
fi

stage prompts "ten questions about the documentation Python carries" \
    python -m scripts.demo.prompts build "$run/prompts.jsonl"
stage sample "$answers answers a prompt" \
    dpo sample "$run/prompts.jsonl" --model "$model" --output "$run/answers.jsonl" --n "$answers" --max-new-tokens 128
stage split "one half for the judge, one for the reward model" \
    python -m scripts.demo.prompts split "$run/answers.jsonl" "$run/to_label.jsonl" "$run/to_score.jsonl"
stage label "the judge labels its half" \
    judge-pipeline label "$run/to_label.jsonl" --output "$run/labels" "${judge[@]}"
# A 135M judge's labels are not worth learning from: beside it, the reward model learns from those of a capable judge
# that come with this repository. A judge of your own teaches it itself.
taught=("$run/labels")
[ "$judge_model$judge_url" != smollm2 ] || taught=(scripts/demo/judged/labels.jsonl --prompts scripts/demo/judged/prompts.jsonl)
stage train "a reward model learns from a judge's labels" \
    reward-model train "${taught[@]}" --base-model "$model" --output "$run/reward_model" \
    --method probe --eval-fraction 0.25 --evidence off --token-budget 4096 --allow-constant
stage evaluate "the reward model beside the judge, on documents it never saw, with and without the document" \
    reward-model evaluate "$run/reward_model" "${taught[0]}" "${taught[@]:1}" --output "$run/fidelity" --likelihood off
stage score "the reward model scores the other half, without the judge" \
    reward-model score "$run/reward_model" "$run/to_score.jsonl" --output "$run/scored.jsonl"
stage pairs "best against worst" \
    dpo pairs "$run/scored.jsonl" --output "$run/pairs.jsonl" --min-responses 2 --keep-flagged truncated
stage dpo "a short DPO run" \
    dpo train "$run/pairs.jsonl" --model "$model" --output "$run/dpo" \
    --eval-fraction 0 --max-steps 4 --gradient-accumulation-steps 1 --gradient-checkpointing
say "[report] one page for the whole run"
python -m scripts.demo.report "$run"
