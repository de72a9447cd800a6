#!/bin/sh
# The main job: real XRootD traffic (or, where the capture is not there, the simulator's) through the pipeline, then the answer.
set -eu
gridstead=$1
capture=${GRIDSTEAD_CAPTURE:-../shared/data/xrootd/shoveler_use_case.jsonl}
if [ "$("$gridstead" --json report | grep -c '"src"')" -gt 0 ]; then
  echo "The pipeline has an answer already; it was not fed again."
elif [ -f "$capture" ]; then
  echo "Replaying the captured packets of $capture over UDP:"
  "$gridstead" replay "$capture" --wait --timeout 300
else
  echo "There is no capture at $capture (set GRIDSTEAD_CAPTURE to name one): sending the simulator's sample."
  "$gridstead" simulate --seed 1 --events 2000 --send --wait --timeout 300
fi
"$gridstead" report
