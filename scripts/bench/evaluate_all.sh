#!/usr/bin/env bash
# Makes every evidence table again, with any judge you name.
#
#   scripts/bench/evaluate_all.sh DATA [--judge.… flags of `judge-pipeline label`]
#
#   scripts/bench/evaluate_all.sh data                                   # baselines and trained models only
#   scripts/bench/evaluate_all.sh data --judge.base-url http://localhost:8000/v1 --judge.model NAME
#
# DATA holds prompt files that people judged (qmsum_meetings, longdocfactscore, mtrag, qa_feedback) and
# squality_stories.jsonl.gz. Results land beside the benchmarks (*.json); runs, labels and reports in runs/evidence.
# Everything resumes: run the same line again after an interruption. SKIP_TRAINING=1 leaves out the two trainings,
# LIMIT=N labels only the first N prompts of each file.
set -euo pipefail

if [ $# -lt 1 ]; then sed -n '2,14p' "$0"; exit 2; fi
data=$1; shift
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-$root/runs/evidence}
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$work"
labels=()

if [ $# -gt 0 ]; then
  for name in qmsum_meetings longdocfactscore mtrag qa_feedback; do
    echo "== labels: $name"
    # Exit code 3 says that some answers could not be labelled; the tables count them.
    "$python" -m judge_pipeline.cli label "$data/$name.jsonl" --output "$work/labels/$name" --existing resume \
      ${LIMIT:+--limit "$LIMIT"} "$@" || [ $? -eq 3 ]
    labels+=("$name=$work/labels/$name")
  done
  echo "== agreement with people, beside baselines and the judge asked directly"
  "$python" "$root/scripts/bench/human_agreement.py" --data "$data" --work "$work/agreement" \
    --labels "${labels[@]}" --pairwise-judge --holistic "$@"
  echo "== statements: one a call against six"
  "$python" "$root/scripts/bench/statements.py" --data "$data" --work "$work/statements" ${LIMIT:+--limit "$LIMIT"} "$@"
else
  echo "== agreement with people: baselines (name a judge to see it beside them)"
  "$python" "$root/scripts/bench/human_agreement.py" --data "$data" --work "$work/agreement"
fi

if [ -z "${SKIP_TRAINING:-}" ]; then
  echo "== known defects"
  "$python" "$root/scripts/bench/known_defects.py" --data "$data" --work "$work/known-defects"
  echo "== people's preferences, beside TRL"
  "$python" "$root/scripts/bench/human_preferences.py" --data "$data" --work "$work/human-preferences"
fi
echo "done: $root/scripts/bench/*.json"
