#!/usr/bin/env bash
# What a newcomer does with real clips: from a file of messages to a model that answers over HTTP.
# Stands in a folder with `clips`, `mine.jsonl` and `model`; no config file is written or edited.
set -euo pipefail

small=(--config.model.dtype=float32 --config.model.remat=none --config.data.rows=4
  --config.data.row_tokens=512 --config.data.max_buckets=1 --config.data.threads=2
  --config.media.min_frames=4 --config.media.max_frames=4
  --config.media.min_pixels=3136 --config.media.max_pixels=12544)
from=(--config.model.init_from=model --config.data.records=mine.jsonl)

videorft validate --data=mine.jsonl --data_root=. --json=validated.json
videorft inspect --data=mine.jsonl --index=2 --model=model --out=inspected.html
videorft sft --config=sft_7b --workdir=runs/sft "${small[@]}" "${from[@]}" \
  --config.data.epochs=10 --config.train.max_steps=10 --config.optim.lr=1e-3
videorft grpo --config=grpo_7b --workdir=runs/grpo "${small[@]}" \
  --config.model.init_from=model --config.data.records=mine.jsonl \
  --config.data.epochs=10 --config.train.max_steps=5 --config.train.max_skipped_in_row=9 \
  --config.rollout.num_rollouts=4 --config.rollout.max_new_tokens=16 \
  --config.rewards="(('accuracy', 1.0), ('format', 1.0))"
videorft report runs/grpo --out=page.html
videorft evaluate --config=evaluate_7b --workdir=runs/evaluated "${small[@]}" \
  --config.evaluate.checkpoint=runs/grpo --config.data.records=mine.jsonl \
  --config.evaluate.max_new_tokens=16
videorft export --checkpoint=runs/grpo --out=exported
videorft ask --model=exported --video=clips/bikes.mp4 --question="What moves?" \
  --dtype=float32 --max_new_tokens=8 --show=seen.png --json >answer.json
videorft serve --checkpoint=exported --dtype=float32 --port=0 --root=clips --max_new_tokens=16 \
  >served.log 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until grep -q "^serving" served.log; do
  kill -0 "$server"
  sleep 0.2
done
python request.py "$(sed -n 's/^serving .* at //p' served.log)" >reply.json
kill "$server"
wait "$server"
