#!/usr/bin/env bash
# Runs the experiments behind this repository's tables, in order of value:
#
#     figure/reproduce.sh MINUTES [NAME ...]
#
# It ends when all are done or after MINUTES; run again, it goes on where it stopped, on another machine too if
# runs/reproduce came along. What is finished is collected in figure/results, and the tables are made anew.
# NAME: only these experiments. Environment: DATA, the image sets (datasets); TEACHER, a trained VDSR to distil
# instead of one's own; OUT, where runs go (runs/reproduce); RESULTS (figure/results) and TABLES (figure); FLAGS,
# appended to every command (a rehearsal: FLAGS="--nEpochs=1 --iter=1 --batchSize=2 --data_test=Set5", and for those
# of several stages --nEpochs=20 --stu_step=1).
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."

end=$((SECONDS + 60 * $1)); shift
only=" $* "
out=${OUT:-runs/reproduce} results=${RESULTS:-figure/results} data=${DATA:-datasets}
teacher=${TEACHER:-$out/teacher.pth}
mkdir -p "$out" "$results/ablation" "$results/edsr"

measured= # whether there are new results
collect() { # the tables, of what is in $results
  [ -n "$measured" ] || return 0
  python -m figure.table --results="$results" --output="${TABLES:-figure}"
  python -m figure.ablation --results="$results" --output="${TABLES:-figure}"
}

stop() { collect; exit "$1"; }

run() { # run NAME script flags...: unless its result is there; NAME names the result's file
  local name=$1 script=$2 left status; shift 2
  [ "$only" = "  " ] || [[ "$only" == *" $name "* ]] || return 0
  [ -f "$results/$name.json" ] && return 0
  left=$((end - SECONDS))
  [ "$left" -gt 0 ] || { echo "out of time before $name"; stop 0; }
  echo "== $name"
  timeout --signal=TERM --kill-after=60 "$left" python "$script" "$@" --data_dir="$data" --save_dir="$out/$name" \
    --output="$out/$name.pth" --resume=auto ${FLAGS:-}
  status=$?
  [ $status -eq 124 ] && { echo "out of time in $name"; stop 0; }
  [ $status -eq 0 ] || { echo "$name ended with code $status"; stop $status; }
  cp "$out/$name/results.json" "$results/$name.json"
  measured=yes
}

distil() { # distil NAME flags...: of the VDSR teacher
  local name=$1; shift
  run "$name" distillation.py --pretrained="$teacher" "$@"
}

paper="--stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 --latent=256 --lr_G=1e-5 --model_type=half --nEpochs=80"
short="--stu_step=50 --iter=20 --nEpochs=20 --step=7 --val_dataset=held_out" # of an ablation: 20,000 student steps

# Table 1: the teacher (Adam and a cosine, which need fewer steps than the reference's SGD), the fast recipe, the
# student with data, the paper's command, noise.
[ -n "${TEACHER:-}" ] || run teacher train_teacher.py --model_type=origin --optimizer=adam --schedule=cosine --lr=5e-4 --nEpochs=100
distil fast --recipe=fast
run student train_teacher.py --model_type=half --optimizer=adam --schedule=cosine --nEpochs=80
distil ours $paper
distil noise $paper --source=noise

# What the parts bring, at equal steps, two seeds each.
for seed in 1 2; do
  distil "ablation/both_$seed" $short --seed=$seed
  distil "ablation/reconstruction_$seed" $short --seed=$seed --gw=0
  distil "ablation/adversarial_$seed" $short --seed=$seed --reconw=0
  distil "ablation/rounded_$seed" $short --seed=$seed --rounded
  for noise in uniform normal; do
    for at in lr hr; do
      distil "ablation/noise_${noise}_${at}_$seed" $short --seed=$seed --source=noise --noise=$noise --noise_at=$at
    done
  done
  distil "ablation/folder_$seed" $short --seed=$seed --source=folder
  distil "ablation/dead_leaves_$seed" $short --seed=$seed --source=dead_leaves
  distil "ablation/dead_leaves+generator_$seed" $short --seed=$seed --source=dead_leaves+generator
  for stages in 2 3 6 9 18; do
    step=$((18 / stages)); [ $step -le 3 ] || step=3
    for init in random identity; do
      distil "ablation/stages_${stages}_${init}_$seed" $short --seed=$seed --inc_num=$stages --inc_step=$step --grow_init=$init
    done
  done
  distil "ablation/dead_leaves_adam_$seed" $short --seed=$seed --source=dead_leaves --optimizer=adam --schedule=cosine
  distil "ablation/dead_leaves_adam_L1_$seed" $short --seed=$seed --source=dead_leaves --optimizer=adam --schedule=cosine --loss_type=L1
done

# EDSR: teachers, the larger scales starting from x2, and half-width students of every source.
for scale in 2 3 4; do
  edsr="--scale=$scale --batchSize=16 --optimizer=adam --schedule=cosine --lr=1e-4 --seed=1"
  from=""; [ $scale = 2 ] || from="--pretrained=$out/edsr/teacher_x2.pth"
  [ $scale = 2 ] && from="--arch=edsr_baseline"
  run edsr/teacher_x$scale train_teacher.py --model_type=origin $from $edsr --patch_size=$((48 * scale)) --nEpochs=100
  run edsr/student_x$scale train_teacher.py --model_type=half --arch=edsr_baseline $edsr --patch_size=$((48 * scale)) --nEpochs=100
  for source in generator dead_leaves; do
    run edsr/${source}_x$scale distillation.py --pretrained="$out/edsr/teacher_x$scale.pth" $edsr \
      --input_size=$((48 * scale)) --source=$source --iter=20 --nEpochs=60
  done
done

# The reference's own recipe for teacher and student with data.
run ablation/teacher_sgd train_teacher.py --model_type=origin
run ablation/student_sgd train_teacher.py --model_type=half
collect
